"""Run by every rank of test_processes: work that takes far longer than processes may wait for each other.

python -m tests.training.engine.slow_ranks DATASET FOLDER

What was found is written to FOLDER/found_<rank>.json; :func:`found` gives the same in one process.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from config.decompose import TextCondition
from layers.dataset.loaders import StackDataset
from metrics.reconstruction.perceptual import Perceptual
from models.vae import latents
from tests.support.networks import tiny_network, tiny_vae
from training.decompose.captions import embed_captions
from training.decompose.latents import both_splits
from training.decompose.validation import held_out_velocity_error, preview, sampled_scores
from training.engine.processes import done_once
from training.vae.validation import validate

TIMEOUT = 4.0
TEXT = TextCondition(encoder="minilm", source=None, max_tokens=16, dropout=0.0)


def slowly(network, name: str, seconds: float) -> None:
    """Let each call of a method take some time more."""
    original = getattr(network, name)

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return original(*args, **kwargs)

    setattr(network, name, slow)


def found(root: str, folder: Path, accelerator: Accelerator, seconds: float = 0.0) -> dict:
    """Latents, validation of all kinds and captions; each kind takes ``seconds`` in all, over all processes."""
    latents.PIXELS_AT_ONCE = 1  # a sample a batch, so that there is something to share out
    vae, network = tiny_vae(), tiny_network()
    done_once(lambda: vae.save_pretrained(folder / "vae"), accelerator)
    encoding = tiny_vae()
    # 12 samples of one to three layers and a composite.
    slowly(encoding, "encode", seconds / 36)
    train, held_out = both_splits(encoding, folder / "vae", root, cache_dir=folder / "cache", accelerator=accelerator)
    forward = network.forward
    slowly(network, "forward", seconds / 12)
    errors = held_out_velocity_error(network, held_out, accelerator)
    network.forward = forward
    truth = StackDataset(root, "val")
    captions = embed_captions(TEXT, train.texts + held_out.texts, folder / "texts", accelerator)
    states, mask = captions(sorted({text for texts in train.texts for text in texts}))
    return {
        "latents": float(sum(train.stack(index).double().sum() for index in range(len(train)))),
        "ids": [train.ids, held_out.ids],
        "errors": errors,
        "scores": sampled_scores(network, vae, held_out, truth, accelerator, samples=3, steps=2),
        "reconstruction": validate(vae, truth, Perceptual(), accelerator),
        "preview": int(preview(network, vae, held_out, accelerator).astype(int).sum()),
        "captions": [float(states.double().sum()), mask is None or int(mask.sum())],
    }


def main() -> None:
    """Share out the work, then let rank 0 work alone for longer than the timeout."""
    torch.set_num_threads(1)
    limit = InitProcessGroupKwargs(timeout=timedelta(seconds=TIMEOUT))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
    root, folder = sys.argv[1], Path(sys.argv[2])
    result = found(root, folder, accelerator, 3 * TIMEOUT)
    alone = done_once(lambda: (time.sleep(1.5 * TIMEOUT), "rank 0")[1], accelerator)
    path = folder / f"found_{accelerator.process_index}.json"
    path.write_text(json.dumps(result | {"alone": alone}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
