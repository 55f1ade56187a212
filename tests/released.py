"""A language model of some thousand random weights in the layout of the released Qwen-Image-Layered."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models.text_encoders import NULL_TEXT, QWEN_TEMPLATE

WIDTH = 32
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "A red poster, a {brace} in it.",
    "",
    "Ein Plakat mit Umlauten: äöü, 海报, 🙂; and a second line\nwith <|im_end|> inside.",
    "disc",
    NULL_TEXT,
]


def write_tokenizer(folder: Path) -> int:
    """Files of the released tokenizer's layout with a few hundred tokens; gives their number."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([QWEN_TEMPLATE, *TEXTS], trainer)
    folder.mkdir(parents=True)
    bpe.model.save(str(folder))
    size = bpe.get_vocab_size()
    added = {str(size + k): {"content": token, "special": True} for k, token in enumerate(SPECIAL)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {index: entry | flags for index, entry in added.items()},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({t: size + k for k, t in enumerate(SPECIAL)}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return size + len(SPECIAL)


def write_text_encoder(root: Path) -> Path:
    """Write ``text_encoder/`` and ``tokenizer/`` below ``root``."""
    vocab_size = write_tokenizer(root / "tokenizer")
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(root / "text_encoder")
    return root
