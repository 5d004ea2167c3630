"""Each component does what a reader should see, and not what public code gets wrong."""
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def test_mapping_network_learns_a_hundredth_as_fast(vitgan):
    assert all(layer.lr_mult == 0.01 for layer in vitgan.MappingNetwork(8, 16, 8).layers)

def test_fourier_features_span_the_square_row_by_row_and_differ_everywhere(vitgan):
    grid = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert vitgan.coordinate_grid(2).tolist() == grid
    assert vitgan.coordinate_grid(1).tolist() == [[0, 0]]
    features = vitgan.FourierFeatures(8, 32)
    table = features()
    assert torch.equal(features.coords, vitgan.coordinate_grid(8))
    assert table.shape == (64, 32) and table.abs().max() <= 1
    assert (torch.cdist(table, table) + 9 * torch.eye(64)).min() > 0.1

def test_sln_is_gamma_times_normalized_plus_beta(vitgan):
    sln = vitgan.SelfModulatedLayerNorm(16, 8)
    h, w = 5 + 3 * torch.randn(2, 4, 16), torch.randn(2, 8)
    centered = h - h.mean(-1, keepdim=True)
    normalized = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = sln.gamma(w)[:, None] * normalized + sln.beta(w)[:, None]
    torch.testing.assert_close(sln(h, w), expected)
    assert not list(sln.norm.parameters())

def test_generator_block_adds_both_halves(vitgan):
    block, h, w = vitgan.GeneratorBlock(16, 2, 16), torch.randn(2, 5, 16), torch.randn(2, 16)
    middle = h + block.attention(block.norm1(h, w))
    torch.testing.assert_close(block(h, w), middle + block.mlp(block.norm2(middle, w)))

def test_g_has_two_slns_per_block_and_one_after_the_last(vitgan, make_config):
    modules = vitgan.Generator(make_config(depth=3)).modules()
    assert sum(isinstance(m, vitgan.SelfModulatedLayerNorm) for m in modules) == 2 * 3 + 1

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
    for _ in range(1500):
        G(torch.randn(16, config.latent_dim))
    expected = G.mapping(torch.randn(4096, config.latent_dim)).mean(0).detach()
    assert (G.w_avg - expected).norm() < 0.15 * expected.norm()
    before = G.w_avg.clone()
    G.eval()(torch.randn(16, config.latent_dim))
    assert torch.equal(before, G.w_avg)

@pytest.mark.parametrize("squared_norm", [1.0, 300.0, 60_000.0, 200_000.0])
def test_l2_attention_in_float16_is_finite_and_near_float32(vitgan, device, squared_norm):
    """A network's |q|^2 is in the hundreds; float16 ends at 65,504, so queries are scaled first."""
    q, v = torch.randn(2, 2, 3, 16, 64, device=device).requires_grad_()
    q = q / q.norm(dim=-1, keepdim=True) * squared_norm**0.5
    exact = vitgan.l2_attention(q, v)
    with torch.autocast(device.type, torch.float16):
        half = vitgan.l2_attention(q, v)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.01)
    (gradient,) = torch.autograd.grad(half.float().sum(), q)
    assert gradient.isfinite().all()

def test_every_matrix_of_d_that_sees_the_image_is_spectrally_normalized(vitgan, make_config):
    D = vitgan.Discriminator(make_config(depth=2))
    plain = [n for n, m in D.named_modules() if type(m).__name__ in ("EqualizedLinear", "Linear")]
    assert plain and all(name.startswith("positions.") for name in plain)
    assert sum(type(m).__name__ == "ISNLinear" for m in D.modules()) == 2 + 2 * 5

def test_discriminator_knows_where_a_patch_lies(vitgan, make_config):
    D = vitgan.Discriminator(make_config(overlap=0)).eval()
    x = torch.randn(4, 3, 8, 8)
    swapped = x.roll(4, -1)  # with o = 0 and two patches in a row: the same set of patches
    assert (D(x) - D(swapped)).abs().min() > 1e-4

CONFIGS = st.fixed_dictionaries(dict(
    patch_size=st.integers(1, 4), depth=st.integers(1, 2), heads=st.integers(1, 3),
    latent_dim=st.integers(1, 6), mapping_layers=st.integers(1, 2), overlap=st.integers(0, 1)))

@given(CONFIGS, st.booleans(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_shapes_of_whole_networks(vitgan, make_config, options, finer, grid, d, batch):
    options |= dict(image_size=grid * options["patch_size"], width=d * options["heads"],
                    patch_size_d=1 if finer else options["patch_size"])
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

# The device

PARTS = {  # what to make, in terms of the definitions and a Config, and the shapes of its inputs
    "equalized": (lambda v, c: v.EqualizedLinear(6, 5, lr_mult=0.1), (3, 6)),
    "mapping": (lambda v, c: v.MappingNetwork(8, 16), (3, 8)),
    "positions": (lambda v, c: v.FourierFeatures(4, 16),),
    "SLN": (lambda v, c: v.SelfModulatedLayerNorm(16, 8), (2, 4, 16), (2, 8)),
    "attention": (lambda v, c: v.SelfAttention(16, 2), (2, 5, 16)),
    "block of G": (lambda v, c: v.GeneratorBlock(16, 2, 8), (2, 5, 16), (2, 8)),
    "modulated, shared x": (lambda v, c: v.ModulatedLinear(16, 9, 8), (6, 16), (4, 8)),
    "modulated, few outputs": (lambda v, c: v.ModulatedLinear(16, 3, 8), (4, 6, 16), (4, 8)),
    "modulated, many outputs": (lambda v, c: v.ModulatedLinear(16, 9, 8), (4, 6, 16), (4, 8)),
    "decoder": (lambda v, c: v.PatchSIREN(16), (16, 16), (4, 16)),
    "G": (lambda v, c: v.Generator(c).eval(), (3, 8)),
    "patches": (lambda v, c: v.OverlappingPatches(4, 2), (2, 3, 8, 8)),
    "ISN": (lambda v, c: v.ISNLinear(6, 5), (3, 6)),
    "L2 attention": (lambda v, c: v.L2SelfAttention(16, 2), (2, 5, 16)),
    "block of D": (lambda v, c: v.DiscriminatorBlock(16, 2), (2, 5, 16)),
    "D": (lambda v, c: v.Discriminator(c), (3, 3, 8, 8))}

@pytest.mark.parametrize("make, shapes", [(f, shapes) for f, *shapes in PARTS.values()], ids=PARTS)
def test_forward_and_backward_on_the_device_are_those_of_float64(
        vitgan, config, device, make, shapes):
    """Within 1e-4 of the largest entry, for the output and each gradient: float32 has 1e-7."""
    part = make(vitgan, config)
    inputs = [torch.randn(shape) for shape in shapes]

    def run(part, inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = part(*inputs)
        direction = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y)
        return y, *torch.autograd.grad((y * direction).sum(), [*inputs, *part.parameters()])

    exact = run(copy.deepcopy(part).double(), [x.double() for x in inputs])
    there = run(part.to(device), [x.to(device) for x in inputs])
    assert {t.device.type for t in there} == {device.type}
    for a, b in zip(there, exact, strict=True):
        assert a.dtype == torch.float32 and (b != 0).any()
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=1e-4 * scale)
