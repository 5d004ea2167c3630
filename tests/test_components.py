"""Each component does what a reader should see, and not what public code gets wrong."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st


def std(x):
    return x.detach().std().item()


def isn_layers(D):
    return [m for m in D.modules() if type(m).__name__ == "ISNLinear"]


def exact_sigma(weight):
    return torch.linalg.svdvals(weight.detach())[0].item()


def test_equalized_bias_is_what_was_asked_for(vitgan):
    layer = vitgan.EqualizedLinear(3, 5, bias_init=2.0, lr_mult=0.01)
    torch.testing.assert_close(layer(torch.zeros(1, 3)), torch.full((1, 5), 2.0))


def test_mapping_network_learns_a_hundredth_as_fast(vitgan):
    assert all(layer.lr_mult == 0.01 for layer in vitgan.MappingNetwork(8, 16, 8).layers)


def test_fourier_features_span_the_square_row_by_row_and_differ_everywhere(vitgan):
    assert vitgan.coordinate_grid(2).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert vitgan.coordinate_grid(1).tolist() == [[0, 0]]
    features = vitgan.FourierFeatures(8, 32)
    table = features()
    assert table.shape == (64, 32) and table.abs().max() <= 1 and torch.equal(features.coords, vitgan.coordinate_grid(8))
    assert (torch.cdist(table, table) + 9 * torch.eye(64)).min() > 0.1


def test_sln_is_gamma_times_normalized_plus_beta(vitgan):
    sln, h, w = vitgan.SelfModulatedLayerNorm(16, 8), 5 + 3 * torch.randn(2, 4, 16), torch.randn(2, 8)
    centered = h - h.mean(-1, keepdim=True)
    normalized = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(sln(h, w), sln.gamma(w)[:, None] * normalized + sln.beta(w)[:, None])
    assert not list(sln.norm.parameters())


def test_w_changes_the_output_through_every_sln(vitgan, make_config):
    """Changing w at one place only changes the embedding, and no two places do the same with it."""
    G = vitgan.Generator(make_config(depth=2)).eval()
    w, other = torch.randn(2, 1, 16)
    places = [m for m in G.modules() if type(m).__name__ == "SelfModulatedLayerNorm"]
    assert len(places) == 5
    outputs = [G.embed(w)]
    for place in places:
        handle = place.register_forward_pre_hook(lambda module, args: (args[0], other))
        outputs.append(G.embed(w))
        handle.remove()
    distances = torch.pdist(torch.stack(outputs).flatten(1))
    assert distances.min() > 1e-3


def literal_self_attention(layer, h):
    """Vaswani et al. 2017, eq. 1, head by head."""
    q, k, v = layer.qkv(h).chunk(3, -1)
    heads = []
    for Q, K, V in zip(*(x.chunk(layer.heads, -1) for x in (q, k, v))):
        heads.append(torch.softmax(Q @ K.mT / math.sqrt(Q.shape[-1]), -1) @ V)
    return layer.out(torch.cat(heads, -1))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 8))
def test_self_attention_divides_by_sqrt_of_the_head_width_before_the_softmax(vitgan, batch, tokens, heads, d):
    layer, h = vitgan.SelfAttention(heads * d, heads), torch.randn(batch, tokens, heads * d)
    torch.testing.assert_close(layer(h), literal_self_attention(layer, h), rtol=1e-5, atol=1e-5)


def test_generator_block_adds_both_halves(vitgan):
    block, h, w = vitgan.GeneratorBlock(16, 2, 16), torch.randn(2, 5, 16), torch.randn(2, 16)
    middle = h + block.attention(block.norm1(h, w))
    torch.testing.assert_close(block(h, w), middle + block.mlp(block.norm2(middle, w)))
    up, activation, down = block.mlp
    x = torch.randn(3, 16)
    torch.testing.assert_close(block.mlp(x), down(F.gelu(up(x))))
    assert up(x).shape == (3, 64) and isinstance(activation, torch.nn.GELU)


def test_fourier_features_are_learned_and_computed_once_per_forward(vitgan, config):
    G, calls = vitgan.Generator(config), []
    G.fourier.register_forward_hook(lambda module, args, out: calls.append(out))
    G(torch.randn(5, config.latent_dim)).sum().backward()
    assert [tuple(E.shape) for E in calls] == [(16, 16)] and calls[0].abs().max() <= 1
    assert G.fourier.project.weight.grad.abs().max() > 0


def test_siren_preactivations_start_with_unit_variance(vitgan, make_config):
    """N(0, 1) before each sine: sines of much more are noise, of much less are a linear network."""
    config, measured = make_config(width=128, mapping_layers=8), []
    G = vitgan.Generator(config)
    for layer in G.decoder.hidden:
        layer.register_forward_hook(lambda module, args, out: measured.append(std(out)))
    pixels = G(torch.randn(64, config.latent_dim))
    assert len(measured) == 1 and 0.75 < measured[0] < 1.35  # features and sines: second moment 0.45, styles: 2
    assert 0.5 < std(pixels) < 1.6


def test_siren_output_is_linear(vitgan):
    siren = vitgan.PatchSIREN(16)
    with torch.no_grad():
        siren.out.linear.bias.fill_(50.0)
    assert siren(torch.randn(4, 16), torch.randn(2, 16)).min() > 20


def test_truncation_psi_moves_towards_the_mean_of_w(vitgan, config):
    G = vitgan.Generator(config).eval()
    z = torch.randn(4, config.latent_dim)
    G.w_avg.normal_()
    torch.testing.assert_close(G(z, 0.0), G.synthesize(G.w_avg.expand(4, -1)))
    torch.testing.assert_close(G(z, 0.5), G.synthesize((G.w_avg + G.mapping(z)) / 2))
    assert not torch.allclose(G(z), G(z, 0.5))


def test_w_avg_follows_the_mean_of_w_in_training_and_stands_still_after(vitgan, config):
    G = vitgan.Generator(config)
    G.synthesize = lambda w, zoom: w  # only the first half of the forward pass matters here
    for _ in range(1500):  # 0.998^1500 = 5% of the start is left
        G(torch.randn(16, config.latent_dim))
    expected = G.mapping(torch.randn(4096, config.latent_dim)).mean(0).detach()
    assert (G.w_avg - expected).norm() < 0.15 * expected.norm()
    before = G.w_avg.clone()
    G.eval()(torch.randn(16, config.latent_dim))
    assert torch.equal(before, G.w_avg)


@pytest.mark.parametrize("kind", ["color", "translation", "cutout", "scaling"])
def test_each_augmentation_changes_a_share_p_of_the_images(vitgan, kind):
    x = torch.rand(400, 3, 16, 16) * 2 - 1
    changed = (vitgan.diff_augment(x, kind, 0.8) != x).flatten(1).any(1).float().mean().item()
    # color draws three times, translation two (and a draw of no pixels in 5 changes nothing)
    expected = {"color": 1 - 0.2**3, "translation": 1 - (0.2 + 0.8 / 5) ** 2, "cutout": 0.8, "scaling": 0.8}[kind]
    assert changed == pytest.approx(expected, abs=0.06)  # 3 standard deviations of a share of 400


def test_augmentations_are_independent_between_images(vitgan):
    x = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1)
    assert torch.pdist(vitgan.diff_augment(x, p=1.0).flatten(1)).min() > 0


def test_translation_is_by_whole_pixels_up_to_an_eighth_and_reaches_it_both_ways(vitgan):
    x = torch.zeros(500, 1, 16, 16)
    x[:, :, 8, 8] = 1
    places = vitgan.diff_augment(x, "translation", 1.0).nonzero()[:, 2:] - 8
    assert len(places) == 500 and set(places.flatten().tolist()) == {-2, -1, 0, 1, 2}
    share = [(places[:, 0] == k).float().mean().item() for k in range(-2, 3)]
    assert share == pytest.approx([0.2] * 5, abs=0.06)


def test_cutout_blackens_a_square_of_half_the_side_and_nothing_else(vitgan):
    kept = vitgan.diff_augment(torch.ones(200, 3, 16, 16), "cutout", 1.0)
    assert set(kept.unique().tolist()) == {0, 1}
    holes = (1 - kept[:, 0]).sum((1, 2))
    assert holes.max() == 64 and (kept == kept[:, :1]).all()


def test_scaling_keeps_the_middle_and_the_brightness_there(vitgan):
    x = vitgan.diff_augment(torch.ones(50, 3, 16, 16), "scaling", 1.0)
    torch.testing.assert_close(x[:, :, 3:13, 3:13], torch.ones(50, 3, 10, 10))
    assert (x[:, :, 0, 0] < 0.5).any() and (x[:, :, 0, 0] > 0.99).any()  # shrunk ones show black, grown ones do not


def test_l2_attention_ties_queries_to_keys_and_reads_the_exponent(vitgan):
    h = torch.randn(2, 5, 16)
    half, whole = (vitgan.L2SelfAttention(16, 2, exponent) for exponent in (0.5, 1.0))
    assert sorted(half._modules) == ["out", "qk", "value"]
    whole.load_state_dict(half.state_dict())
    assert not torch.allclose(half.eval()(h), whole.eval()(h))


@pytest.mark.parametrize("squared_norm", [1.0, 300.0, 60_000.0, 200_000.0])
def test_l2_attention_in_float16_is_finite_and_near_float32(vitgan, squared_norm):
    """A network's |q|^2 is in the hundreds; float16 ends at 65,504, so queries are scaled before the product."""
    q, v = torch.randn(2, 2, 3, 16, 64).requires_grad_()
    q = q / q.norm(dim=-1, keepdim=True) * squared_norm**0.5
    exact = vitgan.l2_attention(q, v)
    with torch.autocast("cpu", torch.float16):
        half = vitgan.l2_attention(q, v)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.01)
    (gradient,) = torch.autograd.grad(half.float().sum(), q)
    assert gradient.isfinite().all()


def test_every_matrix_of_d_that_sees_the_image_is_spectrally_normalized(vitgan, make_config):
    D = vitgan.Discriminator(make_config(depth=2))
    plain = [name for name, m in D.named_modules() if type(m).__name__ in ("EqualizedLinear", "Linear")]
    assert plain and all(name.startswith("positions.") for name in plain)
    assert len(isn_layers(D)) == 2 + 2 * 5


def test_isn_ignores_the_scale_of_the_weight_and_plain_sn_has_scale_1(vitgan):
    layer, x = vitgan.ISNLinear(64, 32).eval(), torch.randn(2, 64)
    plain = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(64, 32), n_power_iterations=30)
    before = layer(x).detach()
    layer.weight.data *= 7
    torch.testing.assert_close(layer(x), before)
    assert exact_sigma(plain.weight) == pytest.approx(1, rel=1e-2)
    assert exact_sigma(layer.effective_weight()) == pytest.approx(layer.sigma_init.item(), rel=1e-4) != 1


def test_isn_buffers_are_in_the_state_dict_and_sigma_init_never_moves(vitgan):
    layer = vitgan.ISNLinear(8, 8).train()
    sigma_init = layer.sigma_init.clone()
    assert {"u", "v", "sigma_init"} <= set(layer.state_dict())
    layer.weight.data.normal_()
    for _ in range(3):
        layer(torch.randn(2, 8))
    assert torch.equal(layer.sigma_init, sigma_init)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_discriminator_knows_where_a_patch_lies(vitgan, make_config, pool):
    D = vitgan.Discriminator(make_config(pool=pool, overlap=0)).eval()
    x = torch.randn(4, 3, 8, 8)
    swapped = x.roll(4, -1)  # with o = 0 and two patches in a row: the same set of patches
    assert (D(x) - D(swapped)).abs().min() > 1e-4


CONFIGS = st.fixed_dictionaries(dict(
    patch_size=st.integers(1, 4), depth=st.integers(1, 2), heads=st.integers(1, 3), latent_dim=st.integers(1, 6),
    mapping_layers=st.integers(1, 2), overlap=st.integers(0, 1), pool=st.sampled_from(["class", "mean"])))


@given(CONFIGS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_shapes_of_whole_networks(vitgan, make_config, options, grid, d, batch):
    options |= dict(image_size=grid * options["patch_size"], width=d * options["heads"])
    c = make_config(**options)
    x = vitgan.Generator(c)(torch.randn(batch, c.latent_dim))
    assert x.shape == (batch, 3, c.image_size, c.image_size)
    logits = vitgan.Discriminator(c)(x)
    assert logits.shape == (batch,) and logits.isfinite().all()


def test_images_of_a_batch_do_not_mix(vitgan, config):
    G, D = vitgan.Generator(config).eval(), vitgan.Discriminator(config).eval()
    z = torch.randn(5, config.latent_dim)
    x = G(z)
    torch.testing.assert_close(x[2:3], G(z[2:3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(D(x)[2:3], D(x[2:3]), rtol=1e-4, atol=1e-5)


def test_generator_draws_a_different_patch_at_every_place(vitgan, make_config):
    c = make_config()
    x = vitgan.Generator(c).eval()(torch.randn(2, c.latent_dim))
    patches = reference.overlapping_patches(x, c.patch_size, 0)
    assert all(torch.pdist(p).min() > 0.01 for p in patches)
