"""Gradio page: drop an image, decompose it, edit its layers, download them.

Gradio keeps one session per visitor on the server and runs events one after the other. So an edit made while the
networks run is applied to their result. Every error is shown as a sentence on the page and changes nothing.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.server import Shelf
from app.session import (
    MAX_BYTES,
    MAX_CAPTION,
    MAX_PIXELS,
    PageError,
    Session,
    decomposed,
    edited,
    packed,
    split,
    worded,
)
from app.view import canvas, layer_list, note
from config.base import MOST_LAYERS
from config.errors import UserError
from inference.decomposer import Decomposer
from inference.images import AUTO, Effort, layers_asked, layers_of
from inference.restore import check_room

HERE = Path(__file__)
FORMATS = {
    "psd": "image/vnd.adobe.photoshop",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "ora": "image/openraster",
    "zip": "application/zip",
}
UNASKED = "3"
FONTS = ("system-ui", "sans-serif")
PROGRESS = gr.Progress()
LIMITS_TOLD = f"at most {MAX_BYTES >> 20} MiB and {MAX_PIXELS // 10**6} megapixels"
DROP = f"""<label class="drop" data-most="{MAX_BYTES}" data-large="this file is too large; expected {LIMITS_TOLD}">
<input type="file" accept="image/*" aria-label="image"><b>Drop an image, or choose a file</b>
<small>PNG, JPEG, WebP, TIFF and others; {LIMITS_TOLD}</small></label>"""
TITLE = """<h1>Layers</h1><p>Takes an image apart into layers that can be moved, recoloured and downloaded one by one.
Nothing leaves this machine.</p>"""


@dataclass
class Page:
    """Event listeners of the page and their shared state; each takes a session and returns it with the parts to show.

    Attributes:
        model: the networks.
        effort: sampler steps, and number of candidates.
        guidance: scale of guidance by the visitor's caption.
        seed: of the start noise.
        uploads: decoded images by name.
        downloads: packed files by name.
    """

    model: Decomposer
    effort: Effort
    guidance: float
    seed: int
    uploads: Shelf
    downloads: Shelf

    def on_upload(self, session: Session, event: gr.EventData) -> list[Any]:
        """Take over an uploaded image; it has no layers yet."""

        def work() -> tuple[Session, str]:
            image = self.uploads.take(event._data.get("image"))
            if image is None:
                raise PageError("this image is no longer here; drop it again")
            height, width = image.shape[:2]
            return Session(image), f"An image of {width} × {height} pixels. Choose layers and press Decompose."

        return answer(session, work)

    def on_decompose(
        self, session: Session, count: str, caption: str | None, progress: gr.Progress = PROGRESS
    ) -> list[Any]:
        """Decompose the image, on the button below it."""
        return answer(session, lambda: decomposed(session, count, self._decompose(progress, worded(caption))))

    def on_split(
        self, session: Session, count: str, event: gr.EventData, progress: gr.Progress = PROGRESS
    ) -> list[Any]:
        """Decompose a layer again."""
        return answer(session, lambda: split(session, event._data, count, self._decompose(progress)))

    def on_edit(self, session: Session, event: gr.EventData) -> list[Any]:
        """Apply an edit: from a layer's buttons or fields, or from a drag on the canvas."""
        return answer(session, lambda: edited(session, event._data))

    def on_download(self, session: Session, form: str) -> tuple[str, str]:
        """Pack the layers in a format; returns the download's name in the store, and a sentence."""
        try:
            name = self.downloads.put((packed(session, form), f"layers.{form}", FORMATS[form]))
        except Exception as error:
            return "", note(sentence(error), wrong=True)
        return name, note(f"layers.{form} holds the layers that are not hidden.")

    def _decompose(
        self, progress: gr.Progress, caption: str = ""
    ) -> Callable[[np.ndarray, int | None], list[np.ndarray]]:
        def decompose(image: np.ndarray, count: int | None) -> list[np.ndarray]:
            check_room([image.shape[:2]], layers_asked(self.model, count))
            said = {"captions": [caption], "guidance": self.guidance}
            # With "auto" the network runs again with the number that it chose; guidance doubles every pass.
            passes = (2 if count is None else 1) * (2 if self.model.guides(self.guidance, [caption]) else 1)
            with steps_shown(self.model, self.effort, progress, passes):
                (layers,) = layers_of(self.model, [image], count, seed=self.seed, **said, **self.effort._asdict())
            return layers

        return decompose


@contextmanager
def steps_shown(model: Decomposer, effort: Effort, progress: Callable[..., Any], passes: int):
    """Show sampling progress: one network call a step, ``passes`` times over."""
    progress(0.0, desc="Looking at the image")
    done, calls = 0, effort.steps * effort.tries * passes

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        progress(done / (calls + 1), desc="Finding layers")

    hook = model.network.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def sentence(error: Exception) -> str:
    """Message for a visitor; tracebacks of unexpected errors go to the terminal."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"this did not work ({type(error).__name__}); nothing was changed; the terminal shows the traceback"


def answer(session: Session, work: Callable[[], tuple[Session, str]]) -> list[Any]:
    """Session, canvas, list and note after some work; after an error only the note changes."""
    try:
        after, words = work()
        seen = canvas(after), layer_list(after)
    except Exception as error:
        return [session, gr.skip(), gr.skip(), note(sentence(error), wrong=True)]
    return [after, *seen, note(words)]


def build_page(page: Page) -> gr.Blocks:
    """Lay out the page and connect its listeners."""
    script = HERE.with_suffix(".js").read_text(encoding="utf-8")
    start = Session()

    def live(name: str) -> str:
        return f"{script}\n{name}(element, trigger);"

    with gr.Blocks(title="Layers", analytics_enabled=False, fill_width=True) as blocks:
        session = gr.State(start, time_to_live=6 * 3600)
        gr.HTML(TITLE, elem_id="title", js_on_load=None)
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                drop = gr.HTML(DROP, elem_id="drop", js_on_load=live("dropArea"))
                count = gr.Dropdown(
                    [AUTO, *map(str, range(1, MOST_LAYERS + 1))],
                    # "auto" is the default only for networks trained to choose the number of layers.
                    value=AUTO if page.model.trained_for.surplus_layers else UNASKED,
                    allow_custom_value=True,
                    label="Layers",
                    info=f"{AUTO}, or 1 to {MOST_LAYERS}; for splitting too",
                    elem_id="count",
                )
                caption = gr.Textbox(
                    label="Caption",
                    info="what the image shows, if you like to say it",
                    max_length=MAX_CAPTION,
                    visible=page.model.encoder is not None,
                    elem_id="caption",
                )
                button = gr.Button("Decompose", variant="primary", elem_id="decompose")
                words = gr.HTML(note("Drop an image to begin."), elem_id="note", js_on_load=None)
                gr.HTML("Download what is not hidden:", elem_id="save", js_on_load=None)
                with gr.Row(elem_id="downloads"):
                    formats = {form: gr.Button(form.upper(), size="sm", min_width=40) for form in FORMATS}
                file = gr.Textbox(visible=False)
            with gr.Column(scale=6, min_width=320):
                board = gr.HTML(canvas(start), elem_id="canvas", js_on_load=live("canvas"))
            with gr.Column(scale=4, min_width=320):
                stack = gr.HTML(layer_list(start), elem_id="layers", js_on_load=live("layerList"))

        seen = [session, board, stack, words]
        # One queue for all events: each reads the session when its turn comes, so no edit is lost.
        common = {"concurrency_limit": 1, "concurrency_id": "page", "api_visibility": "private"}
        slow = common | {"show_progress": "full", "show_progress_on": board}
        quick = common | {"show_progress": "hidden", "trigger_mode": "multiple"}
        drop.upload(page.on_upload, session, seen, **quick)
        button.click(page.on_decompose, [session, count, caption], seen, **slow)
        stack.submit(page.on_split, [session, count], seen, **slow)
        stack.click(page.on_edit, session, seen, **quick)
        board.click(page.on_edit, session, seen, **quick)
        for form, choice in formats.items():
            ask = choice.click(partial(page.on_download, form=form), session, [file, words], **quick)
            ask.then(None, file, js="(name) => { if (name) location.assign(`download/${name}`); }")
    return blocks.queue(max_size=32)


def looks() -> dict[str, Any]:
    """Theme and style of the page; fonts are those of the system."""
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=("monospace",))
    return {"theme": theme, "css": HERE.with_suffix(".css").read_text(encoding="utf-8")}


def make_page(model: Decomposer, effort: Effort, guidance: float, seed: int) -> tuple[gr.Blocks, Page]:
    """Build the page of a model; see :class:`Page` for the arguments."""
    page = Page(model, effort, guidance, seed, Shelf(), Shelf())
    return build_page(page), page
