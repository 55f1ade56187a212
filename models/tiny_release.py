"""Test release: random weights in the layout of Qwen/Qwen-Image-Layered, which runs every code path in seconds.

    python -m models.tiny_release --out DIR

``DIR`` gets ``model_index.json``, ``text_encoder/`` (Qwen2.5-VL), ``tokenizer/``, ``processor/``, ``vae/`` (RGBA),
``transformer/`` and ``scheduler/``, weights in bfloat16. ``diffusers.QwenImageLayeredPipeline`` reads it. So does
everything here that takes the released folder: ``train_vae.rgb_checkpoint``, ``train_decompose.checkpoint``,
``train_decompose.text.source``, ``--model``. Its outputs are noise. The same seed and library versions give the same
bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from config.paths import visible
from models.transformer.text_encoders import QWEN_TEMPLATE
from models.vae.config import QWEN_LATENTS_MEAN, QWEN_LATENTS_STD

# Diffusers and transformers take seconds to import: they are imported in functions, so that a wrong folder fails fast.

TEXT_WIDTH = 32
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# As released, except for the width, which is 96 there.
VAE_SHAPE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "input_channels": 4,
    "latents_mean": list(QWEN_LATENTS_MEAN),
    "latents_std": list(QWEN_LATENTS_STD),
}
# As released, except for numbers of layers and heads, and widths: 60, 24, 128 (16, 56, 56) and 3584 there.
TRANSFORMER_SHAPE = {
    "latent_channels": 16,
    "patch_size": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": TEXT_WIDTH,
}
PATCH, MERGE = 14, 2


def write_tokenizer(folder: Path, size: int | None = None) -> dict[str, int]:
    """Write a byte-level tokenizer in the file layout of the released one.

    Args:
        folder: created, with its parents.
        size: vocabulary size, at least 263; ``None`` gives every word of the template its own token, so that as many
            tokens precede the caption as with the released tokenizer.

    Returns:
        Id of each special token; the last one is the highest of all.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = QWEN_TEMPLATE
    for token in SPECIAL:
        words = words.replace(token, "")
    trainer = trainers.BpeTrainer(
        vocab_size=10_000 if size is None else size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([words], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))
    numbers = {token: bpe.get_vocab_size() + k for k, token in enumerate(SPECIAL)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(number): {"content": token} | flags for token, number in numbers.items()},
        "unk_token": None,
        "model_max_length": 131072,
        **ends,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "added_tokens.json", numbers)
    _write_json(folder / "special_tokens_map.json", ends)
    return numbers


def write_text_encoder(
    root: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, vocabulary: int | None = None
) -> Path:
    """Write ``text_encoder/`` and ``tokenizer/`` below ``root``; return ``root``.

    Args:
        root: folder of the release.
        seed: seed of the weights.
        dtype: dtype of the weights in the file.
        vocabulary: its size, as in :func:`write_tokenizer`.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging

    numbers = write_tokenizer(root / "tokenizer", vocabulary)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": max(numbers.values()) + 1,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "initializer_range": 0.3,  # with the default 0.02 all texts have nearly the same states
            "bos_token_id": numbers["<|endoftext|>"],
            "eos_token_id": numbers["<|im_end|>"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [0],
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        },
        image_token_id=numbers["<|image_pad|>"],
        video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    with _seeded(seed):
        model = Qwen2_5_VLForConditionalGeneration(config)
    logging.disable_progress_bar()  # writing takes a hundredth of a second
    model.to(dtype).save_pretrained(root / "text_encoder")
    logging.enable_progress_bar()
    return root


def write_processor(root: Path) -> None:
    """Write ``processor/``, with which the released pipeline lets the text encoder generate a missing caption.

    Args:
        root: folder of the release.
    """
    write_tokenizer(root / "processor")
    shape = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "min_pixels": 4 * (PATCH * MERGE) ** 2,
        "max_pixels": 16 * (PATCH * MERGE) ** 2,
        "processor_class": "Qwen2VLProcessor",
    }
    image, video = {"image_processor_type": "Qwen2VLImageProcessor"}, {"video_processor_type": "Qwen2VLVideoProcessor"}
    _write_json(root / "processor" / "preprocessor_config.json", image | shape)
    _write_json(root / "processor" / "video_preprocessor_config.json", video | shape)


def write_networks(root: Path, seed: int = 0) -> None:
    """Write ``vae/``, ``transformer/`` and ``scheduler/``.

    Args:
        root: folder of the release.
        seed: seed of the weights; the VAE includes the weights for video, as released.
    """
    from diffusers import AutoencoderKLQwenImage

    from models.transformer.vld_mmdit import build_transformer, released_scheduler

    with _seeded(seed):
        networks = {"vae": AutoencoderKLQwenImage(**VAE_SHAPE), "transformer": build_transformer(**TRANSFORMER_SHAPE)}
    for name, network in networks.items():
        network.bfloat16().save_pretrained(root / name, safe_serialization=True)
    released_scheduler().save_pretrained(root / "scheduler")


def write_release(root: Path, seed: int = 0) -> Path:
    """Write the whole release into a folder; return the folder.

    Args:
        root: a new or an empty folder.
        seed: seed of all weights.

    Raises:
        FileExistsError: if ``root`` exists and is not empty.
    """
    if root.exists() and (not root.is_dir() or any(visible(path.name) for path in root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder; expected a new or an empty one")
    from diffusers import __version__

    write_text_encoder(root, seed)
    write_processor(root)
    write_networks(root, seed)
    index = {
        "_class_name": "QwenImageLayeredPipeline",
        "_diffusers_version": __version__,
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    _write_json(root / "model_index.json", index)
    return root


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 if the folder was written, 2 with one line on stderr if the user has to act."""
    parser = argparse.ArgumentParser(
        prog="python -m models.tiny_release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default %(default)s)")
    args = parser.parse_args(arguments)
    try:
        write_release(args.out, args.seed)
    except OSError as error:
        print(f"error: --out: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: a release of random weights, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
