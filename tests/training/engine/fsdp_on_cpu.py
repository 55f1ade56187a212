"""Run by every rank of test_sharding: a stage under presets/accelerate/fsdp2.yaml, on the CPU.

python -m tests.training.engine.fsdp_on_cpu STAGE [STEP]

accelerate shards only on GPUs; torch's ``fully_shard`` does so anywhere. What accelerate decides on a machine with GPUs
is therefore decided here; all else is its own code. With STEP, rank 0 is killed once it has logged that step.
"""

import importlib
import os
import sys

import torch
from accelerate import state
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.support.imports import ROOT
from tests.support.workspace import killed_at

CONFIG = ROOT / "presets" / "accelerate" / "fsdp2.yaml"


def as_accelerate_launch_does() -> None:
    """Set the environment that ``accelerate launch --config_file`` gives its processes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIG), "stage.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    launched = prepare_multi_gpu_env(arguments)
    os.environ.update({k: v for k, v in launched.items() if k.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))})


def shard_on_the_cpu() -> None:
    """Let ``AcceleratorState`` take the branch that it has for MULTI_GPU."""
    original = state.AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = patched


def main() -> int:
    """Run the stage."""
    as_accelerate_launch_does()
    shard_on_the_cpu()
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        exec(killed_at(int(sys.argv[2]), sys.argv[1]), {})
    return importlib.import_module(f"stages.{sys.argv[1]}").main([])


if __name__ == "__main__":
    sys.exit(main())
