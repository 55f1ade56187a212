"""LoRA (low-rank adaptation, arXiv 2106.09685) of the transformer through peft, in files that diffusers loads.

A layer ``W x + b`` becomes ``W x + b + alpha / rank * B A x`` with W and b frozen. A ``(rank, in)`` is random and B
``(out, rank)`` zero, so a new LoRA changes nothing. peft is imported where it is used, so nothing else requires it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers import QwenImageTransformer2DModel as Transformer
from safetensors import safe_open
from torch import Tensor, nn

from config.errors import UserError
from layers.files import whole_file
from layers.weight_files import WeightsFileError, check_weights, read_weights

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "default"
FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")

# DiffSynth-Studio's targets for Qwen-Image-Layered: attention, MLP outputs and modulations of both streams.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TARGETS += ("img_mlp.net.2", "txt_mlp.net.2", "img_mod.1", "txt_mod.1")


class LoRAError(UserError, ValueError):
    """LoRA cannot be added, read or merged."""


def target_modules(transformer: nn.Module, targets: Sequence[str] = TARGETS) -> dict[str, nn.Linear]:
    """Linear layers that match ``targets`` by peft's rule: a full name, or its end after a dot.

    Raises:
        LoRAError: if a target matches nothing, or a layer that is not linear.
    """
    found: dict[str, nn.Linear] = {}
    for target in targets:
        named = {n: module for n, module in transformer.named_modules() if n and f".{n}".endswith(f".{target}")}
        if not named or not all(isinstance(module, nn.Linear) for module in named.values()):
            raise LoRAError(f"LoRA target {target!r}: expected a name of linear layers of the transformer, like to_q")
        found |= named
    return found


def add_lora(transformer: Transformer, rank: int, alpha: float | None = None, targets: Sequence[str] = TARGETS) -> int:
    """Freeze the transformer and add float32 adapters to its layers; return the number of trainable parameters.

    Args:
        transformer: transformer in any dtype; A is drawn from torch's global generator.
        rank: rank of the update, at least 1.
        alpha: the update is scaled by ``alpha / rank``. None is ``rank``, as readers without metadata assume.
        targets: names of linear layers, see :func:`target_modules`.

    Raises:
        LoRAError: without peft, for invalid numbers or targets, or if there is a LoRA already.
    """
    _require(transformer, adapted=False)
    if rank < 1 or (alpha is not None and alpha <= 0):
        raise LoRAError(f"LoRA of rank {rank} and alpha {alpha}: expected a rank of at least 1 and an alpha above 0")
    target_modules(transformer, targets)
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets)), ADAPTER)
    return _train_adapters(transformer)


def save_lora(transformer: Transformer, folder: str | Path, base: str | None = None) -> None:
    """Write ``pytorch_lora_weights.safetensors`` for ``QwenImageLayeredPipeline.load_lora_weights``, in one rename.

    Args:
        transformer: transformer with a LoRA.
        folder: folder to write to.
        base: folder or repository of the base weights, written into the file's metadata for :func:`adapted_base`;
            ``None`` if they are not stored anywhere.

    Raises:
        LoRAError: without peft, or if the transformer has no LoRA.
    """
    _require(transformer, adapted=True)
    from diffusers import QwenImageLayeredPipeline as Pipeline
    from peft import get_peft_model_state_dict

    config = transformer.peft_config[ADAPTER]
    # Only a few of dozens of fields: a reader whose peft lacks one cannot read the file. Sorted: sets have no order.
    metadata = {key: getattr(config, key) for key in FIELDS} | {"target_modules": sorted(config.target_modules)}
    if base is not None:
        metadata["base_model_name_or_path"] = base
    tensors = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    with whole_file(Path(folder) / LORA_FILE, alone=True) as part:
        Pipeline.save_lora_weights(folder, tensors, weight_name=part.name, transformer_lora_adapter_metadata=metadata)


def adapted_base(folder: str | Path, rank: int, alpha: float) -> str | None:
    """Base weights of the LoRA in ``folder``; ``None`` if rank or alpha differ or no base is recorded.

    Raises:
        LoRAError: if the file cannot be read.
    """
    path = Path(folder) / LORA_FILE
    if not path.is_file():
        return None
    try:
        check_weights(path)
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except WeightsFileError as error:
        raise LoRAError(str(error)) from error
    except ValueError as error:
        raise LoRAError(f"{path}: expected safetensors with metadata: {error}") from error
    fits = (said.get("transformer.r"), said.get("transformer.lora_alpha")) == (rank, alpha)
    return said.get("transformer.base_model_name_or_path") if fits else None


def load_lora(transformer: Transformer, folder: str | Path) -> int:
    """Add the LoRA of ``folder`` to a transformer without one, freeze the rest; return the trainable parameters.

    Raises:
        FileNotFoundError: if there is no ``pytorch_lora_weights.safetensors``; a ``.bin`` is never read.
        LoRAError: without peft, if the file is for another model or format, or if there is a LoRA already.
    """
    _require(transformer, adapted=False)
    path = Path(folder) / LORA_FILE
    tensors = _read(path, transformer)
    from peft import set_peft_model_state_dict

    try:
        transformer.load_lora_adapter(folder, weight_name=LORA_FILE, adapter_name=ADAPTER, local_files_only=True)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LoRAError(f"{path}: its metadata do not fit its tensors: {' '.join(str(error).split())}") from error
    count = _train_adapters(transformer)
    set_peft_model_state_dict(transformer, tensors, ADAPTER)  # again: they were rounded to the frozen layers' dtype
    return count


def merge_lora(transformer: Transformer) -> None:
    """Merge the LoRA into the weights of a plain, frozen transformer; :class:`LoRAError` without peft or a LoRA."""
    _require(transformer, adapted=True)
    transformer.fuse_lora()
    transformer.unload_lora()


def _read(path: Path, transformer: nn.Module) -> dict[str, Tensor]:
    """Tensors of a LoRA file, checked to be adapters of linear layers of this transformer."""
    try:
        tensors = read_weights(path)
    except WeightsFileError as error:
        raise LoRAError(str(error)) from error
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wanted = {}
    for name, layer in transformer.named_modules():
        a, b = (f"transformer.{name}.lora_{factor}.weight" for factor in "AB")
        if isinstance(layer, nn.Linear) and found.get(a):
            wanted |= {a: (found[a][0], layer.in_features), b: (layer.out_features, found[a][0])}
    wrong = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if wrong or not found:
        example = f": {wrong[0]} is {found.get(wrong[0])}, expected {wanted.get(wrong[0])}" if wrong else ""
        raise LoRAError(f"{path}: {len(wrong)} of its {len(found)} tensors do not fit this transformer{example}")
    return {key.removeprefix("transformer."): value for key, value in tensors.items()}


def _train_adapters(transformer: nn.Module) -> int:
    transformer.requires_grad_(False)
    adapters = [parameter for name, parameter in transformer.named_parameters() if ".lora_" in name]
    for parameter in adapters:
        # peft uses the dtype of the frozen layer; bfloat16 loses updates that are small relative to the weight.
        parameter.requires_grad_().data = parameter.data.float()
    return sum(parameter.numel() for parameter in adapters)


def _require(transformer: nn.Module, *, adapted: bool) -> None:
    try:
        import peft  # noqa: F401
    except ImportError:
        raise LoRAError("LoRA needs the package peft, which is not installed; requirements.in pins it") from None
    if bool(getattr(transformer, "peft_config", None)) != adapted:
        raise LoRAError(f"expected a transformer {'with' if adapted else 'without'} a LoRA, got the contrary")
