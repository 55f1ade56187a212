import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from models.transformer.vld_mmdit import VLDMMDiT, pack, unpack
from tests.support.networks import tiny_network


@pytest.fixture(scope="module")
def network():
    return tiny_network(num_layers=2)


def inputs(batch=2, slots=3, size=(4, 6)):
    torch.manual_seed(1)
    return torch.randn(batch, slots, 4, *size), torch.randn(batch, 4, *size), torch.rand(batch)


def test_packing_is_the_released_pipelines():
    latents = torch.randn(2, 3, 4, 6, 8)
    b, s, c, h, w = latents.shape
    theirs = latents.view(b, s, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
    theirs = theirs.reshape(b, s * (h // 2) * (w // 2), c * 4)
    assert torch.equal(pack(latents, 2), theirs)
    assert torch.equal(unpack(pack(latents, 2), 3, (6, 8), 2), latents)
    with pytest.raises(ValueError, match="5x4 do not split into patches of 2x2"):
        pack(torch.zeros(1, 1, 4, 5, 4), 2)


@torch.no_grad()
def test_slots_keep_their_order_and_the_condition_is_last(network):
    noisy, condition, sigma = inputs()
    out = network(noisy, condition, sigma)
    assert out.shape == noisy.shape
    seen = {}
    hook = network.transformer.pos_embed.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(a=args, k=kwargs), with_kwargs=True
    )
    network(noisy, condition, sigma)
    hook.remove()
    assert seen["a"][0] == [[(1, 2, 3)] * 4] * 2, "three slots and the condition for every sample"
    frequencies, _ = network.transformer.pos_embed(seen["a"][0], max_txt_seq_len=1, device=torch.device("cpu"))
    layer_angle = frequencies.view(4, 6, -1)[:, 0, 0].angle()
    assert layer_angle.tolist() == pytest.approx([0.0, 1.0, 2.0, -1.0])


@torch.no_grad()
def test_every_slot_sees_the_condition_and_the_others(network):
    noisy, condition, sigma = inputs(batch=1)
    out = network(noisy, condition, sigma)
    assert (network(noisy, condition + 1.0, sigma) - out).abs().amax((0, 2, 3, 4)).min() > 1e-4
    changed = noisy.clone()
    changed[:, 1] += 1.0
    assert (network(changed, condition, sigma) - out).abs().amax((0, 2, 3, 4)).min() > 1e-5
    assert (network(noisy[:, [1, 0, 2]], condition, sigma)[:, [1, 0, 2]] - out).abs().max() > 1e-5, (
        "slots have an order"
    )


@torch.no_grad()
def test_a_batch_equals_its_samples(network):
    noisy, condition, sigma = inputs(batch=3, slots=5)
    whole = network(noisy, condition, sigma)
    for k in range(3):
        assert torch.allclose(
            network(noisy[k : k + 1], condition[k : k + 1], sigma[k : k + 1]), whole[k : k + 1], atol=1e-5
        )


def test_it_loads_in_diffusers_and_back(network, tmp_path):
    network.save_pretrained(tmp_path)
    theirs = QwenImageTransformer2DModel.from_pretrained(tmp_path / "transformer")
    assert theirs.config.use_layer3d_rope and theirs.config.use_additional_t_cond
    ours = VLDMMDiT.from_pretrained(tmp_path).eval()
    noisy, condition, sigma = inputs()
    with torch.no_grad():
        assert torch.equal(ours(noisy, condition, sigma), network(noisy, condition, sigma))
    assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
    assert not list(tmp_path.rglob("*.bin"))


def test_wrong_inputs_are_one_sentence(network, tmp_path):
    noisy, condition, sigma = inputs()
    with pytest.raises(ValueError, match="does not fit slots"):
        network(noisy, condition[:, :, :2], sigma)
    with pytest.raises(FileNotFoundError, match="no folder transformer"):
        VLDMMDiT.from_pretrained(tmp_path)


def test_compiled_blocks_compute_the_same_for_any_number_of_layers():
    """Without inductor, which takes a minute: what is captured is what can go wrong here."""
    plain, compiled = tiny_network(num_layers=2), tiny_network(num_layers=2)
    compiled.transformer.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys(), "resume points and folders fit either"
    torch.manual_seed(0)
    for slots in (2, 5):
        inputs = torch.randn(2, slots, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2)
        expected, found = plain(*inputs), compiled(*inputs)
        assert torch.allclose(expected, found, atol=1e-5)
        expected.square().mean().backward(), found.square().mean().backward()
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        # What feeds nothing has no gradient, and compiled one of zeros.
        assert torch.allclose(torch.zeros_like(theirs) if ours.grad is None else ours.grad, theirs.grad, atol=1e-5)
