import copy
import math

import pytest
import torch

from config.decompose import Curriculum, Surplus
from config.params import load_params
from layers.dataset.digest import text_digest
from layers.imaging.tensors import composite
from metrics.reconstruction.perceptual import Perceptual
from models.transformer.text_encoders import NULL_TEXT
from tests.support.networks import tiny_network, tiny_vae
from training.decompose.captions import Captions
from training.decompose.flow_objective import FlowObjective, error_curves, phase_at, with_surplus
from training.decompose.pixel_terms import NAMES, PixelTerms
from training.decompose.refine_objective import RefineObjective
from training.engine.cache import TensorCache

PARAMS = load_params("presets/smoke.yaml")


def decompose_settings(**changes):
    return PARAMS.train_decompose.model_copy(update=changes)


def refine_settings(**weights):
    silent = dict.fromkeys(PARAMS.refine.loss.model_dump(), 0.0)
    return PARAMS.refine.model_copy(update={"loss": PARAMS.refine.loss.model_copy(update=silent | weights)})


def batch_of(clean, seen=0):
    texts = [[f"whole {k}", *(f"layer {k} {i}" for i in range(clean.shape[1] - 1))] for k in range(len(clean))]
    return {"latents": clean, "seen": seen, "texts": texts}


class Perfect(torch.nn.Module):
    """Knows the clean latents, so its velocity is exact; remembers what it was given."""

    def __init__(self, clean):
        super().__init__()
        self.clean, self.idle = clean, torch.nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, noisy, condition, sigma, text=None):
        self.calls.append({"noisy": noisy, "condition": condition, "sigma": sigma, "text": text})
        return (noisy - self.clean) / sigma.view(-1, 1, 1, 1, 1) + self.idle


@pytest.fixture
def captions(tmp_path):
    """Every text is one token that holds its own hash; the null text is zeros."""
    cache = TensorCache(tmp_path, {"what": "test"})

    class Hashed(Captions):
        def __call__(self, texts, device="cpu"):
            cache.put(
                {
                    text_digest(text): {
                        "embedding": torch.full((1, 8), 0.0 if text == NULL_TEXT else float(len(text))),
                        "mask": torch.ones(1, dtype=torch.bool),
                    }
                    for text in texts
                }
            )
            self.asked = list(texts)
            return super().__call__(texts, device)

    return Hashed(cache, 8)


def test_a_perfect_network_has_no_flow_loss():
    clean = torch.randn(2, 3, 4, 4, 4)
    terms = FlowObjective(Perfect(clean), decompose_settings())(batch_of(clean))
    assert all(value < 1e-8 for value in map(float, terms.values()) if not math.isnan(value))


def test_the_condition_is_the_clean_composite():
    clean = torch.randn(2, 3, 4, 4, 4)
    network = Perfect(clean)
    FlowObjective(network, decompose_settings())(batch_of(clean))
    (call,) = network.calls
    assert torch.equal(call["condition"], clean[:, 0])
    assert not torch.equal(call["noisy"][:, 0], clean[:, 0]), "slot 0 is noisy all the same"
    assert call["text"] is None


def test_phases_follow_each_other_by_samples():
    curriculum = Curriculum(text_to_rgba=10, text_to_layers=5)
    assert [phase_at(curriculum, seen) for seen in (0, 9, 10, 14, 15, 10**9)] == [
        "text_to_rgba", "text_to_rgba", "text_to_layers", "text_to_layers", "image_to_layers", "image_to_layers",
    ]  # fmt: skip


def test_each_phase_shows_the_network_what_it_should(captions):
    settings = decompose_settings(
        curriculum=Curriculum(text_to_rgba=10, text_to_layers=10),
        text=PARAMS.train_decompose.text.model_copy(update={"dropout": 0.0}),
    )
    clean = torch.randn(4, 3, 4, 4, 4)
    network = Perfect(clean)
    objective = FlowObjective(network, settings, captions)
    torch.manual_seed(0)
    one_slot = FlowObjective(Perfect(clean[:, :1]), settings, captions)
    terms = one_slot(batch_of(clean, seen=0))
    (call,) = one_slot.network.calls
    assert call["noisy"].shape == (4, 1, 4, 4, 4) and call["condition"] is None
    assert set(terms) == {"loss", "velocity_rgba"}
    for said, asked in zip(batch_of(clean)["texts"], captions.asked, strict=True):
        assert asked in said
    assert {asked.split()[0] for asked in captions.asked} == {"whole", "layer"}, "any slot may be the one"

    objective(batch_of(clean, seen=10))
    assert network.calls[-1]["noisy"].shape == clean.shape and network.calls[-1]["condition"] is None
    assert captions.asked == [f"whole {k}" for k in range(4)]
    objective(batch_of(clean, seen=20))
    assert torch.equal(network.calls[-1]["condition"], clean[:, 0])


def test_text_to_rgba_pairs_each_image_with_its_own_words(captions):
    """Slot k holds the number k, and so does its text's length: the network sees both."""
    clean = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(16, 3, 4, 4, 4)
    settings = decompose_settings(
        curriculum=Curriculum(text_to_rgba=1, text_to_layers=0),
        text=PARAMS.train_decompose.text.model_copy(update={"dropout": 0.0}),
        timestep=PARAMS.train_decompose.timestep.model_copy(update={"mean": -12.0}),
    )
    network = Perfect(torch.zeros(16, 1, 4, 4, 4))
    batch = {"latents": clean, "seen": 0, "texts": [["a", "bb", "ccc"]] * 16}
    FlowObjective(network, settings, captions)(batch)
    (call,) = network.calls
    shown = call["noisy"].mean((1, 2, 3, 4)).round()
    assert torch.equal(call["text"][0][:, 0, 0], shown + 1) and len(shown.unique()) > 1


def test_dropped_captions_become_the_null_text(captions):
    torch.manual_seed(0)
    texts = [f"text {k}" for k in range(2000)]
    kept = captions.dropped(texts, 0.25)
    assert all(new in (old, NULL_TEXT) for old, new in zip(texts, kept, strict=True))
    assert sum(new == NULL_TEXT for new in kept) / 2000 == pytest.approx(0.25, abs=0.03)
    assert captions.dropped(texts, 0.0) == texts and set(captions.dropped(texts, 1.0)) == {NULL_TEXT}


def test_curves_split_the_error_by_layer_and_by_sigma():
    errors = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 10.0]])
    curves = {k: v.item() for k, v in error_curves(errors, torch.tensor([0.1, 1.0])).items()}
    assert curves["velocity_composite"] == 3.0 and curves["velocity_layers"] == 5.25
    assert curves["velocity_layer_1"] == 4.0 and curves["velocity_layer_2"] == 6.5
    assert curves["velocity_sigma_1_of_4"] == 2.0 and curves["velocity_sigma_4_of_4"] == 7.0
    assert math.isnan(curves["velocity_sigma_2_of_4"])


def test_a_perfect_network_has_no_pixel_loss():
    vae = tiny_vae()
    clean = torch.randn(2, 3, 4, 4, 4)
    objective = RefineObjective(Perfect(clean), vae, refine_settings(velocity=1.0, layer_pixels=1.0))
    terms = objective(batch_of(clean))
    assert set(terms) == {"loss", "velocity", "layer_pixels"}
    assert terms["layer_pixels"].item() < 1e-6 and terms["velocity"].item() < 1e-8


def test_refinement_trains_the_network_and_leaves_the_vae_alone():
    vae, network = tiny_vae(), tiny_network()
    before = copy.deepcopy(vae.state_dict())
    objective = RefineObjective(network, vae, refine_settings(recomposition=1.0, alignment=1.0, edit_kept=1.0)).train()
    assert not vae.training
    terms = objective(batch_of(torch.randn(2, 3, 4, 4, 4)))
    terms["loss"].backward()
    assert all(p.grad is None for p in vae.parameters())
    assert network.transformer.proj_out.weight.grad.abs().max() > 0, "pixels reach the network through the decoder"
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())


def pixel_terms(scale=1.0, trust=1.0):
    weights, distance = dict.fromkeys(NAMES, 1.0), Perceptual("alex")
    return PixelTerms(tiny_vae(), weights, PARAMS.refine.alignment, decode_scale=scale, trust=trust, distance=distance)


@pytest.mark.parametrize("trust", [0.0, 2.0])
def test_how_far_pixel_terms_fade_with_noise_can_be_chosen(trust):
    clean = torch.randn(2, 3, 4, 16, 16)
    terms, wrong = pixel_terms(trust=trust), clean + torch.randn_like(clean)
    half, clear = (terms(wrong, clean, torch.full((2,), level)) for level in (0.5, 0.0))
    for name in NAMES:
        assert half[name].item() == pytest.approx(0.5**trust * clear[name].item(), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pixel_terms_fade_with_noise_and_vanish_for_the_truth(scale):
    terms, clean = pixel_terms(scale), torch.randn(2, 3, 4, 16, 16)
    wrong = clean + torch.randn_like(clean)
    half, none = terms(wrong, clean, torch.tensor([0.5, 0.5])), terms(wrong, clean, torch.ones(2))
    clear = terms(wrong, clean, torch.zeros(2))
    assert set(half) == set(NAMES)
    for name in NAMES:
        assert half[name].item() == pytest.approx(0.5 * clear[name].item(), rel=1e-4) and clear[name].item() > 0.0
        assert none[name].item() == 0.0
    true = terms(clean, clean, torch.zeros(2))
    # Of random latents the layers do not recompose to the composite, so the other two have no zero here.
    assert true["layer_pixels"].item() < 1e-5 and true["alpha_colour"].item() < 1e-5
    # The soft minimum over merge levels may dip below 0.
    assert true["alignment"].item() < 0.01 < clear["alignment"].item()


@pytest.mark.parametrize("edit", ["move", "delete"])
def test_checkpointing_changes_no_gradient_and_keeps_nothing_of_the_first_pass(edit, monkeypatch):
    # One image is decoded at a time.
    monkeypatch.setattr("training.decompose.pixel_terms.GRADIENT_SHARE", 2**22)
    torch.manual_seed(0)
    network, vae, clean = tiny_network(), tiny_vae(), torch.randn(1, 4, 4, 16, 16)
    noise, sigma, index = torch.randn_like(clean), torch.tensor([0.4]), torch.tensor([1])
    weights = {name: 1.0 for name in PARAMS.refine.loss.model_dump() if name != "lpips"}
    found, calls, sizes = [], [], []
    network.register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[1]))
    vae.decoder.register_forward_pre_hook(lambda _, given: sizes.extend([len(given[0])] * given[0].requires_grad))
    for on in (False, True):
        if on:
            network.transformer.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()
        settings = refine_settings(**weights).model_copy(update={"gradient_checkpointing": on})
        network.zero_grad()
        calls.clear(), sizes.clear()
        torch.manual_seed(1)
        terms = RefineObjective(network, vae, settings).terms(clean, noise, sigma, edit=edit, index=index)
        asked = len(calls)
        terms["loss"].backward()
        found.append(
            (
                terms["loss"].detach(),
                [p.grad.clone() for p in network.parameters() if p.grad is not None],
                asked,
                len(calls),
            )
        )
    plain, checkpointed = found
    assert plain[2:] == (2, 2)
    assert checkpointed[2:] == (2, 3), "the first pass once more, in the backward pass"
    assert sizes == [1] * 6, "three layers, each twice"
    assert torch.equal(plain[0], checkpointed[0])
    for one, other in zip(plain[1], checkpointed[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def refiner(clean, **weights):
    return RefineObjective(Perfect(clean), tiny_vae(), refine_settings(**weights))


@pytest.mark.parametrize("edit", ["move", "resize", "recolour"])
def test_an_edited_stack_keeps_all_other_latents(edit):
    torch.manual_seed(0)
    clean = torch.randn(2, 4, 4, 4, 4)
    index = torch.tensor([1, 2])
    edited = refiner(clean, edit_kept=1.0).edited_latents(clean, edit, index)
    assert edited.shape == clean.shape
    assert torch.equal(edited[0, [1, 3]], clean[0, [1, 3]]) and torch.equal(edited[1, [1, 2]], clean[1, [1, 2]])
    assert not torch.allclose(edited[0, 2], clean[0, 2]) and not torch.allclose(edited[1, 3], clean[1, 3])


def test_a_deleted_layer_leaves_one_slot_fewer_and_the_composite_without_it():
    torch.manual_seed(0)
    clean = torch.randn(2, 4, 4, 4, 4)
    objective = refiner(clean, edit_kept=1.0)
    edited = objective.edited_latents(clean, "delete", torch.tensor([1, 2]))
    assert torch.equal(edited[0, 1:], clean[0, [1, 3]]) and torch.equal(edited[1, 1:], clean[1, [1, 2]])
    vae = objective.pixels.vae
    with torch.no_grad():
        pixels = vae.decode(vae.denormalise(clean[0, [1, 3]]), clamp=True)[None]
        flat = composite(pixels)
        flat = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
        assert torch.allclose(edited[0, 0], vae.normalise(vae.encode(flat).mode())[0], atol=1e-4)


def test_kept_layers_cost_nothing_when_the_network_keeps_them_and_something_otherwise():
    clean, noise, sigma = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 4, 4, 4, 4), torch.full((2,), 0.5)

    class Knows(torch.nn.Module):
        """Says of every slot what it is told to, whatever it sees."""

        def __init__(self, answers):
            super().__init__()
            self.answers, self.idle = answers, torch.nn.Parameter(torch.zeros(1))

        def forward(self, noisy, condition, sigma, text=None):
            answer = self.answers.pop(0)
            return (noisy - answer) / sigma.view(-1, 1, 1, 1, 1) + self.idle

    index = torch.tensor([1, 2])
    objective = refiner(clean, edit_velocity=1.0, edit_kept=1.0)
    for edit in ("move", "delete"):
        torch.manual_seed(4)
        edited = objective.edited_latents(clean, edit, index)
        torch.manual_seed(4)
        objective.network = Knows([clean, edited])
        terms = objective.terms(clean, noise, sigma, edit=edit, index=index)
        assert terms["edit_velocity"].item() < 1e-6 and terms["edit_kept"].item() < 1e-8
        torch.manual_seed(4)
        objective.network = Knows([clean, edited + 1.0])
        terms = objective.terms(clean, noise, sigma, edit=edit, index=index)
        assert terms["edit_kept"].item() == pytest.approx(0.5, rel=1e-3), "1 - sigma times a difference of 1"
        assert terms["edit_velocity"].item() == pytest.approx(4.0, rel=1e-3), "the error of x_0, over sigma, squared"


def test_surplus_layers_are_empty_on_top_and_as_often_as_asked():
    clean, empty = torch.randn(2, 3, 4, 4, 4), torch.randn(4, 4, 4)
    torch.manual_seed(0)
    counts = []
    for _ in range(400):
        shown = with_surplus(clean, empty, Surplus(share=0.5, max_layers=4))
        assert torch.equal(shown[:, :3], clean) and all(torch.equal(slot, empty) for slot in shown[0, 3:])
        counts.append(shown.shape[1] - 3)
    assert set(counts) == {0, 1, 2}, "2 layers, and at most 4 of them"
    assert counts.count(0) / 400 == pytest.approx(0.5, abs=0.08)
    assert counts.count(1) / 400 == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(("share", "most"), [(0.0, 6), (1.0, 2)])
def test_there_is_no_surplus_without_a_share_or_without_room(share, most):
    clean = torch.randn(2, 3, 4, 4, 4)
    assert with_surplus(clean, torch.randn(4, 4, 4), Surplus(share=share, max_layers=most)) is clean


def test_the_objective_asks_for_empty_layers_where_there_is_a_surplus():
    clean, empty = torch.randn(2, 3, 4, 4, 4), torch.randn(4, 4, 4)
    network = Perfect(torch.cat([clean, empty.expand(2, 1, -1, -1, -1)], dim=1))
    settings = decompose_settings(surplus=Surplus(share=1.0, max_layers=3))
    asked = []
    terms = FlowObjective(network, settings, empty=lambda size: asked.append(size) or empty)(batch_of(clean))
    assert asked == [(4, 4)] and terms["velocity_layer_3"] < 1e-8
    assert torch.equal(network.calls[0]["condition"], clean[:, 0])


def test_images_of_surplus_layers_are_not_compared():
    clean, empty = torch.randn(2, 3, 4, 4, 4), torch.randn(4, 4, 4)
    network = Perfect(torch.cat([clean, empty.expand(2, 1, -1, -1, -1)], dim=1))
    shown = []
    objective = FlowObjective(
        network, decompose_settings(surplus=Surplus(share=1.0, max_layers=3)), empty=lambda size: empty
    )
    objective.pixels = lambda estimate, truth, sigma: shown.append((estimate, truth)) or {}
    objective(batch_of(clean))
    ((estimate, truth),) = shown
    assert torch.equal(truth, clean) and torch.allclose(estimate, clean, atol=1e-4)
