"""The page of stages/app.py as somebody in front of it: what they press, and what they see."""

import base64
import functools
import io
import json

import numpy as np
from PIL import Image

from tests.support.browser import NeverTrueError

NOTE = "document.querySelector('#note .note')"
NAMES = "[...document.querySelectorAll('#layers .name')].map((name) => name.firstChild.textContent.trim())"


class Visit:
    """A page freshly opened."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.requests.clear(), browser.errors.clear()
        browser.open(address, 1200, 900)
        browser.wait(f"!!{NOTE} && !!document.querySelector('#drop[data-ready] input, #drop [data-ready] input')")

    def upload(self, path):
        self.told(lambda: self.browser.choose_file("#drop input", path))

    def told(self, act, wrong=False):
        """Do something and wait for the next sentence."""
        self.browser.js(f"{NOTE}.textContent = ''")
        act()
        words = self.browser.wait(f"{NOTE}.textContent")
        assert self.browser.js(f"{NOTE}.getAttribute('role')") == ("alert" if wrong else "status"), words
        return words

    def click(self, selector, wrong=False):
        return self.told(lambda: self.browser.js(f"document.querySelector({json.dumps(selector)}).click()"), wrong)

    def layer(self, name, action, wrong=False):
        number = self.names().index(name) + 1
        return self.click(f"#layers li:nth-child({number}) [data-action={action}]", wrong)

    def field(self, name, value):
        field = f"document.querySelector('#layers .edit [name={name}]')"
        self.told(
            lambda: self.browser.js(
                f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change', {{bubbles: true}}))"
            )
        )

    def count(self, words):
        """Type into the field, as people do."""
        self.browser.js(
            "document.querySelector('#count input').focus(); document.querySelector('#count input').select()"
        )
        self.browser.call("Input.insertText", text=words)
        for kind in ("rawKeyDown", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
        self.browser.js("document.activeElement.blur()")

    def caption(self, words):
        self.browser.js("document.querySelector('#caption textarea').select()")
        self.browser.call("Input.insertText", text=words)
        self.browser.js("document.activeElement.blur()")

    def names(self):
        return self.browser.js(NAMES)

    def seen(self):
        """The recomposition, ``(H, W, 4)``."""
        return decoded(self.browser.js("document.querySelector('#canvas .flat').src"))


def decoded(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(int)


def once_more(scenario):
    """Run a test again if an answer never came.

    On a busy machine Gradio's client now and then closes its stream of events just when the next event joins it, and
    that one's answer is lost (gradio-app/gradio#7926 is of the same kind).
    """

    @functools.wraps(scenario)
    def run(*arguments, **named):
        try:
            scenario(*arguments, **named)
        except NeverTrueError:
            scenario(*arguments, **named)

    return run
