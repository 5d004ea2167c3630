"""Growing: twice the image size, the same discriminator, a generator asked at more places, a run that goes on."""

import pytest
import torch
import torch.nn.functional as F

GROWING = dict(patch_size=4, overlap=0, grow_after=12, pool="mean")


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_grow_keeps_the_discriminator_as_a_function_of_2x2_means(vitgan, new_state, images, overlap):
    state = new_state(**{**GROWING, "overlap": overlap})
    for _ in range(3):
        vitgan.train_step(state, vitgan.halve(images))
    D, x = state.D.eval(), torch.randn(8, 3, 8, 8)
    vitgan.grow(state)
    torch.testing.assert_close(state.D.eval()(x), D(F.avg_pool2d(x, 2)), rtol=1e-4, atol=1e-5)
    state.D.train()(x)  # a power iteration finds nothing to correct
    torch.testing.assert_close(state.D.eval()(x), D(F.avg_pool2d(x, 2)), rtol=1e-3, atol=1e-4)


def test_grow_keeps_the_generators_layout_and_its_average(vitgan, new_state):
    state = new_state(**GROWING)
    z, before = torch.randn(16, 8), [state.G.eval(), state.G_ema]
    vitgan.grow(state)
    for old, new in zip(before, (state.G.eval(), state.G_ema)):
        assert new(z).shape == (16, 3, 8, 8)
        torch.testing.assert_close(new(z), old(z, zoom=2))
        assert (F.avg_pool2d(new(z), 2) - old(z)).square().mean() < 0.05 * old(z).var()
    assert state.grown and not any(p.requires_grad for p in state.G_ema.parameters())
    assert state.opt_G.param_groups[0]["lr"] == state.config.lr_g / 2


def test_train_grows_on_time_and_resumes_to_the_same_bits_on_both_sides_of_it(train, tmp_path):
    whole = train(**GROWING)
    for stop in (8, 16, 24):
        parts = train("parts", **GROWING, total_images=stop)
        assert parts.grown and torch.load(tmp_path / "parts" / "checkpoint.pt")["grown"] == (stop > 12)
    for a, b in ((whole.G, parts.G), (whole.D, parts.D), (whole.G_ema, parts.G_ema)):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def test_train_shows_small_samples_before_and_full_ones_after(train):
    sizes = []
    train(**GROWING, on_snapshot=lambda state, samples: sizes.append(samples.shape[-1]))
    assert sizes == [4, 8, 8]


@pytest.mark.parametrize("sizes", [dict(image_size=9, patch_size=3), dict(image_size=6, patch_size=3), dict(patch_size_d=2)])
def test_config_refuses_sizes_that_cannot_be_halved(make_config, sizes):
    with pytest.raises(ValueError, match="allowed with grow_after"):
        make_config(**sizes, grow_after=1)
