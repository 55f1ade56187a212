"""Resume points: everything that a killed run needs to continue exactly.

    .checkpoints/<stage>/<fingerprint>/state.json + tensors_<rank>.safetensors + best_<rank>.safetensors

Rank 0 writes the tensors; of a sharded network each rank writes its part, in a folder that all ranks share. Resume
points lie outside DVC's outs, which DVC deletes before a stage runs. Their key is a fingerprint of the parameters and
inputs that matter. Tensors are safetensors, the rest is JSON: no pickle is read. A resume point is written beside the
old one and renamed, so a kill at any moment leaves a complete one. The previous one stays until the next is begun, in
case the disk damages one. The best weights so far change at most once an epoch; in between, a new resume point
hard-links the old one's file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from config.base import COSMETIC
from config.errors import UserError
from layers.dataset.digest import text_digest
from layers.files import put_folder, whole_file
from training.engine.cache import UnreadableError, open_tensors
from training.engine.processes import done_once
from training.engine.sharding import as_part_of, is_sharded, local_part

# Prefix of auxiliary parameters on disk, from before they had that name: existing resume points stay readable.
AUXILIARY = "companion."


class ResumePointError(UserError):
    """A resume point is damaged and there is no earlier one; the message names what to delete."""


def fingerprint(block: Mapping[str, Any], inputs: Mapping[str, str], world_size: int) -> str:
    """Hash of a stage's parameters, the md5s of its inputs and the number of processes; 16 hex digits."""

    def matters(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: matters(item) for key, item in value.items() if key not in COSMETIC}
        return value

    described = json.dumps([matters(block), dict(inputs), world_size], sort_keys=True)
    return text_digest(described, 16)


def _pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _unpack_optimizer(
    tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = as_part_of(parameters[int(index)], value)
    return {"state": state, "param_groups": description["param_groups"]}


def _frozen(network: torch.nn.Module) -> set[str]:
    """Names of parameters that are not trained: under LoRA, nearly all of 20 billion."""
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def _numbered(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> list[torch.Tensor]:
    """Tensors named ``prefix`` plus a number, ordered by the number."""
    numbers = sorted(int(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix))
    return [tensors[f"{prefix}{number}"] for number in numbers]


def _on_the_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CPU copies of this process's part of each tensor."""
    return {name: local_part(v).detach().cpu().contiguous().clone() for name, v in tensors.items()}


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, name)


class CheckpointStore:
    """Store for the resume point of one stage under one fingerprint.

    Args:
        root: the folder ``.checkpoints``.
        stage: name of the stage.
        key: from :func:`fingerprint`.
        accelerator: the processes that save and load together.
    """

    def __init__(self, root: Path, stage: str, key: str, accelerator: Accelerator) -> None:
        self.home = root / stage
        self.folder = self.home / key
        self.lock = root / f".{stage}.{key}.lock"
        self._fresh, self._old = self.folder.with_suffix(".part"), self.folder.with_suffix(".old")
        self.accelerator = accelerator
        self.sharded = is_sharded(accelerator)
        part = accelerator.process_index if self.sharded else 0
        self._file, self._best = f"tensors_{part}.safetensors", f"best_{part}.safetensors"

    def others(self) -> list[str]:
        """Fingerprints of the stage's resume points with other parameters or inputs."""
        if not self.home.is_dir():
            return []
        found = (path for path in self.home.iterdir() if path != self.folder and not path.suffix)
        return sorted(path.name for path in found if (path / "state.json").is_file())

    def read_state(self) -> dict[str, Any] | None:
        """State saved beside the tensors, or ``None`` if there is nothing to resume."""
        path = self.folder / "state.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save(
        self,
        *,
        network: torch.nn.Module,
        auxiliary: list[torch.nn.Parameter],
        ema: list[torch.Tensor],
        best: list[torch.Tensor] | None,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
    ) -> None:
        """Write a resume point, without frozen weights; it replaces the last one only when complete.

        Called by every rank. ``best`` is not written again while ``best_epoch`` in ``state`` is unchanged.
        """
        main, fresh = self.accelerator.is_main_process, self._fresh
        if main:
            # The previous one is removed first: there are never more than two on disk.
            for folder in (fresh, self._old):
                shutil.rmtree(folder, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if main or self.sharded:
            tensors, optimizer_state = _pack_optimizer(optimizer)
            frozen = _frozen(network)
            tensors |= {f"network.{name}": v for name, v in network.state_dict().items() if name not in frozen}
            tensors |= {f"{AUXILIARY}{index}": value for index, value in enumerate(auxiliary)}
            tensors |= {f"ema.{index}": value for index, value in enumerate(ema)}
            with whole_file(fresh / self._file, alone=True) as part:
                save_file(_on_the_cpu(tensors), part)
            before = self.read_state()
            if before is not None and before.get("best_epoch") == state.get("best_epoch"):
                _link(self.folder / self._best, fresh / self._best)
            else:
                kept = {str(index): value for index, value in enumerate(best or [])}
                with whole_file(fresh / self._best, alone=True) as part:
                    save_file(_on_the_cpu(kept), part)
        self.accelerator.wait_for_everyone()
        if main:
            described = {**state, "optimizer": optimizer_state}
            (fresh / "state.json").write_text(json.dumps(described), encoding="utf-8")
            if self.folder.exists():
                self.folder.rename(self._old)
            put_folder(fresh, self.folder)
        self.accelerator.wait_for_everyone()

    def recover(self) -> None:
        """Fall back to the previous resume point if the last is damaged, or missing after a kill between two renames.

        Called by every rank.

        Raises:
            ResumePointError: if none is complete.
            UnreadableError: if a file cannot be read now.
        """
        faults: dict[Path, str] = {}
        for folder in done_once(lambda: [f for f in (self.folder, self._old) if f.is_dir()], self.accelerator):
            found = gather_object([self._fault(folder)])
            for error in filter(lambda fault: isinstance(fault, UnreadableError), found):
                raise error
            if fault := next(filter(None, found), None):
                faults[folder] = fault
                continue
            if folder == self._old:
                for why in faults.values():
                    self.accelerator.print(f"{self.folder}: damaged ({why}): going on from the previous resume point")
                if self.accelerator.is_main_process:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self._old.rename(self.folder)
            break
        else:
            if faults:
                raise self._broken("; ".join(faults.values()))
        self.accelerator.wait_for_everyone()

    def _fault(self, folder: Path) -> str | UnreadableError | None:
        """Reason why this rank cannot resume from a folder; ``None`` if it can."""
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if not isinstance(state, dict) or "optimizer" not in state:
                return "state.json: unexpected content"
        except FileNotFoundError:
            return "state.json: is gone"
        except ValueError as error:
            return f"state.json: {error}"
        except OSError as error:
            return UnreadableError(f"{folder / 'state.json'}: cannot be read now ({error.strerror})")
        for name in (self._file, self._best):
            try:
                with open_tensors(folder / name):
                    pass
            except FileNotFoundError:
                return f"{name}: is gone"
            except SafetensorError as error:
                return f"{name}: {error}"
            except UnreadableError as error:
                return error
        return None

    def _broken(self, why: str) -> ResumePointError:
        return ResumePointError(
            f"{self.folder}: this resume point cannot be resumed ({why}); delete {self.folder}* to start afresh"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Report a resume point with unexpected content, such as one of other code, in one sentence.

        Raises:
            ResumePointError: naming what to delete.
        """
        try:
            yield
        except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self._broken(f"{type(error).__name__}: {reason}") from None

    @torch.no_grad()
    def load(
        self, *, network: torch.nn.Module, auxiliary: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Restore network, auxiliary parameters and optimizer in place; return the EMA and the best weights."""
        tensors = load_file(self.folder / self._file)
        frozen = _frozen(network)
        for name, value in network.state_dict().items():
            if name not in frozen:
                local_part(value).copy_(tensors[f"network.{name}"])
        optimizer.load_state_dict(_unpack_optimizer(tensors, self.read_state()["optimizer"], optimizer))

        for parameter, value in zip(auxiliary, _numbered(tensors, AUXILIARY), strict=True):
            parameter.copy_(value)
        return _numbered(tensors, "ema."), _numbered(load_file(self.folder / self._best)) or None

    def clear(self) -> None:
        """Remove this resume point after the stage has written its weights; those of other runs stay."""
        for folder in (self.folder, self._fresh, self._old):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.home.rmdir()
