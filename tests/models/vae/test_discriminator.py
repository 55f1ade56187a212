import torch

from models.vae.discriminator import PatchDiscriminator


def test_a_logit_sees_70_pixels():
    torch.manual_seed(0)
    images = torch.randn(1, 4, 128, 128, requires_grad=True)
    logits = PatchDiscriminator(8)(images)
    assert logits.shape == (1, 1, 14, 14)
    # Group norm looks at the whole image; without it the patch shows.
    model = PatchDiscriminator(8)
    for index, module in enumerate(model.blocks):
        if isinstance(module, torch.nn.GroupNorm):
            model.blocks[index] = torch.nn.Identity()
    model(images)[0, 0, 7, 7].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_images_are_judged_alone():
    torch.manual_seed(0)
    model, images = PatchDiscriminator(8, layers=2), torch.randn(3, 4, 32, 32)
    together = model(images)
    for index in range(3):
        assert torch.allclose(together[index], model(images[index : index + 1])[0], atol=1e-5)
