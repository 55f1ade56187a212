"""The plan of every stage of presets/qwen.yaml against torch's memory tracker over the stages' own code, at full width.

Tensors are pretended (training.memory.probe): nothing here was measured on a GPU. Of the sixty blocks one computes, the
last; blocks are alike, and for each other one its inputs are kept, as a checkpoint keeps them.
"""

import itertools
from functools import cache
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks import memory_table
from config.params import load_params
from inference.decomposer import Decomposer
from metrics.reconstruction.rgba import reconstruction_metrics
from models.transformer.lora import add_lora
from models.transformer.trained_for import RELEASED as TRAINED_FOR
from models.transformer.vld_mmdit import VLDMMDiT, build_transformer
from models.vae.autoencoder import RGBAVAE
from models.vae.config import VAEConfig
from models.vae.latents import STACKS_AT_ONCE, at_once, decode_layers, encode_stack, stacks_at_once
from stages.plan import IMAGES_AT_ONCE
from tests.support.imports import ROOT
from training.decompose.flow_objective import FlowObjective
from training.decompose.refine_objective import RefineObjective
from training.memory.networks import RELEASED, networks_of
from training.memory.plan import GIB, RESERVE
from training.memory.probe import PretendedDistance, answer, pretended
from training.memory.stages import Trained, vae_stage
from training.memory.use import Used, used_stage
from training.vae.objective import VAEObjective
from training.vae.validation import STACKS_AT_ONCE as VALIDATED_AT_ONCE
from training.vae.validation import measure_stacks

PARAMS = load_params(ROOT / "presets" / "qwen.yaml")
NETWORKS = networks_of(PARAMS)
ROOM = 80 * GIB - RESERVE
SIZES = [(side, side, layers) for side in (640, 1024) for layers in (4, 10, 20)]
BLOCKS, TEXT = RELEASED["num_layers"], 512


class Tracker(MemTracker):
    """Of tensors alone: modules that are frozen, or called twice, are more than it can track."""

    def __init__(self):
        super().__init__()
        self._mod_tracker = MagicMock(parents=set(), is_bw=False)

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return super().__torch_dispatch__(lambda *a, **k: answer(func, a, k), types, args, kwargs)


def peak_of(call, *held):
    """The most bytes at once, with what is held from the start."""
    tracker = Tracker()
    for part in held:
        tracker.track_external(part)
    with tracker:
        call()
    return tracker.get_tracker_snapshot("peak")[torch.device("meta")]["Total"]


class Kept(torch.autograd.Function):
    """Keeps as many tensors like its input as there are blocks that do not compute; the last to be let go."""

    @staticmethod
    def forward(ctx, x, gain, blocks):
        ctx.save_for_backward(*(torch.empty_like(x) for _ in range(blocks)))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def network_like(blocks=1, others=BLOCKS - 1):
    """LoRA on bfloat16 with checkpointing, as the preset has it; and the bytes of the weights of the other blocks."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = build_transformer(**{**RELEASED, "num_layers": blocks})
    finally:
        torch.set_default_dtype(torch.float32)
    add_lora(transformer, PARAMS.refine.lora.rank)
    transformer.enable_gradient_checkpointing()
    parameters = list(transformer.transformer_blocks[0].parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    adapters = sum(p.numel() for p in parameters if p.requires_grad)
    gain = torch.zeros((), requires_grad=True)
    for stream in (transformer.img_in, transformer.txt_in):
        stream.register_forward_hook(lambda _, __, x: Kept.apply(x, gain, others) if torch.is_grad_enabled() else x)
    network = VLDMMDiT(transformer)
    network.compute_dtype = torch.bfloat16
    # Weight, gradient, two moments, average.
    return network, others * (2 * frozen + (4 + 4 + 8 + 4) * adapters)


def training_state(*networks):
    """Moments, and the average or in validation the weights that wait beside it; AdamW itself changes them in place."""
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    return [torch.zeros_like(p) for p in trained for _ in range(3)]


def vae_like(checkpointing=True, compute=torch.bfloat16):
    vae = RGBAVAE(VAEConfig()).eval()
    vae.enable_gradient_checkpointing(checkpointing)
    vae.compute_dtype = compute
    return vae


def captions(texts, *_):
    return torch.randn(len(texts), TEXT, RELEASED["joint_attention_dim"]), None


captions.dropped = lambda texts, share: texts


def quick(settings):
    """Without the alignment loss, whose thousands of small operations have a test of their own."""
    return settings.model_copy(update={"loss": settings.loss.model_copy(update={"alignment": 0.0})})


def latents_of(key, stacks=1):
    return torch.randn(stacks, key[2] + 1, 16, key[0] // 8, key[1] // 8)


@cache
def trained(name):
    """By size the peaks of a step and of validation."""
    settings = quick(getattr(PARAMS, name))
    found = {}
    with pretended():
        (network, others), vae, distance = network_like(), vae_like(), PretendedDistance()
        if name == "refine":
            objective = RefineObjective(network, vae, settings, captions, distance)
        else:
            objective = FlowObjective(network, settings, captions)
        state = training_state(network)
        held = (objective, vae, torch.empty(others, dtype=torch.uint8), *state)
        copies = [torch.zeros_like(p) for p in network.parameters() if p.requires_grad]
        for key in SIZES:

            def terms(clean, edit="recolour", key=key):
                texts = [["", *[""] * key[2]]] * len(clean)
                if name == "refine":
                    index, noise = torch.zeros(len(clean), dtype=torch.long), torch.randn_like(clean)
                    sigma = torch.rand(len(clean))
                    return objective.terms(clean, noise, sigma, edit=edit, index=index, texts=texts)
                return objective({"latents": clean, "texts": texts, "seen": 10**6})

            def step(key=key, terms=terms):
                terms(latents_of(key))["loss"].backward()
                objective.zero_grad()

            @torch.no_grad()
            def validation(key=key, terms=terms):
                stacks = stacks_at_once(key, STACKS_AT_ONCE)
                terms(latents_of(key, stacks))
                decode_layers(vae, latents_of(key, stacks)[:, 1:])

            found[key] = {"step": peak_of(step, *held), "validation": peak_of(validation, *held, *copies)}
    return found


@cache
def encoded():
    found = {}
    with pretended():
        vae = vae_like(False, None)
        for key in SIZES:
            stacks = stacks_at_once(key, STACKS_AT_ONCE)
            composite, layers = torch.randn(stacks, 4, *key[:2]), torch.randn(stacks, key[2], 4, *key[:2])
            call = lambda composite=composite, layers=layers: encode_stack(vae, composite, layers)  # noqa: E731
            found[key] = {"encoding": peak_of(call, vae, composite, layers)}
    return found


@cache
def trained_vae():
    """By side of the images; validation has as many in hand whatever the number of layers."""
    settings, found = PARAMS.train_vae, {}
    with pretended():
        vae = vae_like()
        objective, judge, plain = VAEObjective(vae, settings), PretendedDistance(), vae_like(False, None)
        state, copies = training_state(objective), [torch.zeros_like(p) for p in vae.parameters()]
        for key in ((640, 640, 10), (1024, 1024, 10)):

            def step(key=key):
                batch = {name: torch.randn(1, 4, *key[:2]) for name in ("component", "composite")}
                objective({**batch, "seen": settings.discriminator.start_samples})["loss"].backward()
                objective.zero_grad()

            @torch.no_grad()
            def validation(key=key):
                stack = {"composite": torch.randn(4, *key[:2]), "layers": torch.randn(key[2], 4, *key[:2])}
                numbers = range(stacks_at_once(key, VALIDATED_AT_ONCE))
                measure_stacks(plain, dict.fromkeys(numbers, stack), numbers, judge)

            found[key[0]] = {
                "step": peak_of(step, objective, *state),
                "validation": peak_of(validation, objective, *state, *copies),
            }
    return found


def visits(network, vae, size):
    """Weights of ``size`` that come with the network's call and go with the VAE's, as inference.offloading has it."""
    there = []

    def come(*_):
        there[:] = there or [torch.empty(size, dtype=torch.uint8)]

    network.register_forward_pre_hook(come)
    for half in (vae.encoder, vae.decoder):
        half.register_forward_pre_hook(lambda *_: there.clear())


@cache
def used(name):
    """By size the peak of one step of the sampler, with all networks that are on the GPU."""
    images = PARAMS.evaluate.batch_size if name == "evaluate" else IMAGES_AT_ONCE
    nothing_hidden = SimpleNamespace(to=lambda _: SimpleNamespace(all=lambda: True))
    encoder = SimpleNamespace(encode=lambda texts: (captions(texts)[0].bfloat16(), nothing_hidden))
    found = {}
    with pretended():
        torch.set_default_dtype(torch.bfloat16)
        network = VLDMMDiT(build_transformer(**{**RELEASED, "num_layers": 1})).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        network.compute_dtype = torch.bfloat16
        vae = vae_like(False, None)
        own, whole = sum(p.nbytes for p in network.parameters()), 2 * NETWORKS.net.parameters
        if name == "evaluate":
            # Two models: the VAE of the other one stays, what else it has waits in main memory.
            visits(network, vae, whole - own)
            beside = [torch.empty(NETWORKS.vae_bytes, dtype=torch.uint8)]
        else:
            beside = [torch.empty(whole - own + 2 * NETWORKS.text_size.parameters, dtype=torch.uint8)]
        model = Decomposer(network, vae, encoder, None, TRAINED_FOR, torch.device("meta"), torch.bfloat16)
        for key in SIZES:

            def decompose(key=key):
                shown, names = torch.randn(images, 4, *key[:2]), ["a"] * images
                model.decompose(shown, key[2], names, names, steps=1, seed=0, guidance=4.0)

            found[key] = {"network": peak_of(decompose, network, vae, *beside)}
    return found


@cache
def scored(side, count):
    with pretended():
        judge = PretendedDistance()

        @torch.no_grad()
        def compare():
            pair = torch.randn(2, count, 4, side, side)
            reconstruction_metrics(pair[0], pair[1], distance=judge)

        return peak_of(compare, judge)


@cache
def planned(stage, key):
    if stage == "train_vae":
        return vae_stage(PARAMS.train_vae, NETWORKS, key).as_set
    if stage in ("train_decompose", "refine"):
        return Trained(stage, quick(getattr(PARAMS, stage)), NETWORKS, key).stage().as_set
    models = [Used(NETWORKS, torch.bfloat16, "models")] * (1 + len(PARAMS.evaluate.baselines))
    if stage == "evaluate":
        return used_stage(stage, models, key, PARAMS.evaluate.batch_size, scored=True).as_set
    return used_stage(stage, [models[0]._replace(offload="none")], key, IMAGES_AT_ONCE, scored=False).as_set


def moments(stage, key):
    return {moment.name: moment for moment in planned(stage, key).moments(key[2])}


def tracked(stage, key):
    """By moment the most bytes on the GPU."""
    if stage == "train_vae":
        return trained_vae()[key[0]]
    if stage in ("train_decompose", "refine"):
        return trained(stage)[key] | encoded()[key]
    return used(stage)[key]


# What the preset's settings are too much for, on one 80 GB card.
TOO_MUCH = {
    ("train_decompose", (1024, 1024, 20)),
    ("refine", (1024, 1024, 20)),
    ("decompose", (1024, 1024, 20)),
}


@pytest.mark.parametrize("key", SIZES, ids=str)
@pytest.mark.parametrize("stage", ["train_vae", "train_decompose", "refine", "evaluate", "decompose"])
def test_the_peak_of_every_stage(stage, key):
    found, plan = tracked(stage, key), moments(stage, key)
    for name, peak in found.items():
        what = max(plan["network"].peak, plan["images"].peak) if name == "network" else plan[name].peak
        # Of images that wait in main memory the tracker does not know that they do.
        assert 0.96 * peak <= what <= 1.1 * peak, f"{name}: {peak / GIB:.2f} GiB, planned {what / GIB:.2f}"
    assert (max(found.values()) > ROOM) == (planned(stage, key).peak(key[2]) > ROOM) == ((stage, key) in TOO_MUCH)


@pytest.mark.parametrize("key", SIZES, ids=str)
def test_what_evaluate_compares_together(key):
    count = min(key[2], at_once(key[0] * key[1]))
    assert scored(key[0], count) <= moments("evaluate", key)["images"].work


def test_the_table_of_the_docs_is_what_is_planned():
    documented = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "scale.md").read_text().splitlines()]
    key = (640, 640, 20)
    found = [line.strip("| ").split(" | ") for line in memory_table.lines(PARAMS, [key])]
    (head,) = (row for row in documented if row[0] == "GiB")
    column = head.index("640 px, 20")
    peaks = {row[0]: row[column] for row in documented if len(row) == len(head)}
    for name, peak in found[2:7]:
        assert peaks[name] == peak
    # What to switch on: of refine the text says where it differs from train_decompose.
    chosen = [row[1:] for row in found if row[0] == "640 px, 20"]
    said = [row[1:] for row in documented if row[0] == "640 px, 20" and len(row) == 5]
    assert [chosen[1], chosen[3], chosen[4]] == said


def test_blocks_are_alike_and_keep_their_inputs():
    key, peaks = (640, 640, 4), []
    for blocks, others in ((1, 1), (2, 0), (3, 0), (4, 0)):
        with pretended():
            network, _ = network_like(blocks, others)

            def step(network=network):
                clean = latents_of(key)
                network(clean, clean[:, 0], torch.rand(1), captions([""])).sum().backward()

            peaks.append(peak_of(step, network) - sum(p.nbytes for p in network.parameters()))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05), "computed or only kept"
    inputs = ((key[2] + 2) * 40**2 + TEXT) * NETWORKS.net.width * 2
    steps = [then - now for now, then in itertools.pairwise(peaks[1:])]
    assert steps == pytest.approx([inputs] * 2, rel=0.01)
