"""The convolutional discriminator: against literal forms, and through the same training as the ViT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CONV


def test_equalized_conv_keeps_unit_variance_and_halves_without_padding(vitgan):
    conv = vitgan.EqualizedConv(32, 64, 3)
    out = conv(torch.randn(8, 32, 12, 12))
    assert out.shape == (8, 64, 12, 12) and out[..., 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.1)
    assert vitgan.EqualizedConv(32, 64, 3, 2)(torch.randn(1, 32, 13, 13)).shape == (1, 64, 6, 6)


def test_blur_is_the_binomial_filter_channel_by_channel(vitgan):
    x = torch.randn(2, 3, 6, 6)
    row = torch.tensor([1, 3, 3, 1]) / 8
    padded = F.pad(x, (2, 2, 2, 2))
    literal = torch.stack([torch.stack([(padded[:, :, i : i + 4, j : j + 4] * row[:, None] * row).sum((2, 3))
                                        for j in range(7)], -1) for i in range(7)], -2)
    torch.testing.assert_close(vitgan.blur(x, 2), literal)
    assert vitgan.blur(torch.ones(1, 1, 9, 9), 0).allclose(torch.ones(()))


@pytest.mark.parametrize("batch, group", [(8, 4), (4, 4), (6, 2), (3, 1)])
def test_batch_deviation_is_that_of_groups_of_neighbours(vitgan, batch, group):
    h = torch.randn(batch, 5, 4, 4)
    out = vitgan.batch_deviation(h)
    for i in range(batch):
        mates = h[i // group * group : i // group * group + group]
        assert out[i].allclose((mates.var(0, correction=0) + 1e-8).sqrt().mean(), atol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_side_is_halved_down_to_4(vitgan, make_config, size):
    D = vitgan.ConvDiscriminator(make_config(image_size=size, **CONV))
    x = torch.randn(4, 3, size, size)
    assert D.blocks(vitgan.leaky(D.from_rgb(x))).shape == (4, 16, 4, 4) and D(x).shape == (4,)


def test_logit_depends_on_the_mates_in_a_group_only(vitgan, make_config):
    D, x = vitgan.ConvDiscriminator(make_config(**CONV)).eval(), torch.randn(8, 3, 8, 8)
    other = x.clone()
    other[7] = 0
    changed = D(other) != D(x)
    assert changed[4:].all() and not changed[:4].any()


def test_side_that_cannot_be_halved_to_4_is_refused(vitgan, make_config):
    with pytest.raises(vitgan.ConfigError, match="image_size=24; allowed: 8, 16, 32, 64 with 'conv'"):
        make_config(image_size=24, **CONV)
    with pytest.raises(vitgan.ConfigError, match="discriminator='resnet'; allowed: 'vit' or 'conv'"):
        make_config(discriminator="resnet")


def test_settings_choose_the_discriminator(new_run, vitgan):
    assert type(new_run().D) is vitgan.Discriminator and type(new_run(**CONV).D) is vitgan.ConvDiscriminator


@pytest.mark.parametrize("options", [{}, dict(r1=1.0, lecam=0.1), dict(accumulate=2), dict(precision="bfloat16")])
def test_resuming_with_it_equals_never_having_stopped(vitgan, make_config, images, tmp_path, options):
    run = {total: vitgan.train(make_config(total_images=total, **CONV, **options), images, tmp_path / folder, quiet=True)
           for total, folder in ((8, "a"), (24, "b"))}
    start = copy.deepcopy(run[8].D.state_dict())
    resumed = vitgan.train(make_config(total_images=24, **CONV, **options), images, tmp_path / "a", quiet=True)
    for network in ("G", "D", "ema"):
        a, b = getattr(resumed, network).state_dict(), getattr(run[24], network).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(start[name], value) for name, value in resumed.D.state_dict().items())


def test_a_checkpoint_with_the_other_discriminator_is_refused(vitgan, make_config, images, tmp_path):
    vitgan.train(make_config(total_images=8), images, tmp_path, quiet=True)
    with pytest.raises(vitgan.ConfigError, match=r"discriminator='conv' \(checkpoint: 'vit'\)"):
        vitgan.train(make_config(total_images=16, **CONV), images, tmp_path, quiet=True)
