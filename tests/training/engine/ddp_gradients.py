"""Run by every rank of test_processes: each takes its part of a batch, rank 0 writes the synchronised gradients.

python -m tests.training.engine.ddp_gradients OUT
"""

import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from tests.support.networks import tiny_vae
from tests.training.vae.test_objective import settings
from training.vae.objective import VAEObjective


def objective() -> VAEObjective:
    """A network whose posterior is so narrow that its noise is below rounding, and every term that has no draw."""
    vae = tiny_vae().train()
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.z_dim :] = -40.0
        vae.quant_conv.weight[vae.config.z_dim :] = 0.0
    built = VAEObjective(vae, settings(lpips=0.3, kl=0.01, reference_kl=0.2))
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(0.02)
    return built


def images() -> dict[str, torch.Tensor]:
    """Four items."""
    torch.manual_seed(5)
    component, composite = torch.rand(2, 4, 4, 32, 32) * 2 - 1
    return {"component": component, "composite": composite}


def main() -> None:
    """Two micro-batches, the first without synchronisation, as in training.engine.loop."""
    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    module = objective()
    wrapped = accelerator.prepare(module)
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = {name: value[rank::world] for name, value in images().items()}
    halves = [{name: value[k : k + 1] for name, value in mine.items()} for k in range(2)]
    with accelerator.no_sync(wrapped):
        accelerator.backward(wrapped({**halves[0], "seen": 0})["loss"] / 2)
    accelerator.backward(wrapped({**halves[1], "seen": 0})["loss"] / 2)
    if accelerator.is_main_process:
        save_file({name: p.grad.contiguous() for name, p in module.vae.named_parameters()}, sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
