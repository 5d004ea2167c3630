"""The notebook's fast forms equal the literal ones of reference.py; what else the networks are."""
import copy

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

SMALL, SIZES = st.integers(1, 9), st.integers(1, 4)

def close(actual, expected, tolerance=1e-5):
    """Equal relative to the largest entry, to what reordering sums of float32 costs."""
    limit = tolerance * max(1.0, expected.detach().abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)

@given(SMALL, SMALL, SMALL, SMALL, SMALL, st.booleans())
def test_modulation(vitgan, tokens, pixels, fan_in, fan_out, y_dim, shared):
    torch.manual_seed(tokens)
    layer = vitgan.ModulatedLinear(fan_in, fan_out, y_dim)
    torch.nn.init.normal_(layer.linear.bias)
    x = torch.randn(pixels, fan_in) if shared else torch.randn(tokens, pixels, fan_in)
    y = torch.randn(tokens, y_dim)
    literal = reference.modulated_linear(layer, x, y)
    assert literal.shape == (tokens, pixels, fan_out)
    close(layer(x, y), literal)

@given(SMALL, SMALL)
def test_isn_and_its_gradient_are_exact_at_the_start_and_converged(vitgan, fan_in, fan_out):
    torch.manual_seed(fan_in)
    layer = vitgan.ISNLinear(fan_in, fan_out)
    close(layer.eval().effective_weight(), reference.isn_weight(layer))
    u, s, vt = torch.linalg.svd(torch.randn(fan_out, fan_in), full_matrices=False)
    gap = torch.linspace(2, 1, len(s)) ** 2  # well-separated singular values: it converges
    layer.weight.data = u * gap @ vt
    layer.train()
    for _ in range(100):
        layer(torch.randn(2, fan_in))
    close(layer.eval().effective_weight(), reference.isn_weight(layer))
    direction = torch.randn(fan_out, fan_in)
    fast, exact = (torch.autograd.grad((W * direction).sum(), layer.weight)[0]
                   for W in (layer.effective_weight(), reference.isn_weight(layer)))
    close(fast, exact, 1e-4)

AUGMENTATIONS = ["color", "translation", "cutout", "scaling"]
POLICIES = st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(",".join)
SHARES = st.sampled_from([(), (0.0,), (0.5,), (1.0,)])

@given(POLICIES, SHARES, st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_diff_augment(vitgan, policy, share, batch, size, seed):
    x = torch.rand(batch, 3, size, size) * 2 - 1
    torch.manual_seed(seed)
    fast, state = vitgan.diff_augment(x, policy, *share), torch.get_rng_state()
    torch.manual_seed(seed)
    close(fast, reference.diff_augment(x, policy, *share))
    assert torch.equal(state, torch.get_rng_state())

@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 5), st.integers(0, 4))
def test_overlapping_patches(vitgan, batch, channels, grid, patch_size, overlap):
    x = torch.randn(batch, channels, grid * patch_size, grid * patch_size)
    patches = vitgan.OverlappingPatches(patch_size, overlap)(x)
    assert torch.equal(patches, reference.overlapping_patches(x, patch_size, overlap))

@pytest.mark.parametrize("sizes", [
    {}, dict(overlap=0), dict(patch_size=2), dict(patch_size_d=2), dict(patch_size=1, heads=1)])
def test_whole_networks(vitgan, make_config, sizes):
    """Nor do the images of a batch mix."""
    config = make_config(depth=2, **sizes)
    G, D = vitgan.Generator(config).eval(), vitgan.Discriminator(config).eval()
    for network, batch, shape in ((G, torch.randn(3, 8), (3, 3, 8, 8)),
                                  (D, torch.randn(3, 3, 8, 8), (3,))):
        literal = reference.make_literal(copy.deepcopy(network))
        assert any("forward" in vars(m) for m in literal.modules())
        assert network(batch).shape == shape
        close(network(batch), literal(batch), 1e-4)
        close(network(batch)[1:2], network(batch[1:2]), 1e-4)

@pytest.mark.parametrize("squared_norm", [1.0, 300.0, 200_000.0])
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

def test_sln_and_block_of_g_are_their_formulas(vitgan):
    block, h, w = vitgan.GeneratorBlock(16, 2, 8), 5 + 3 * torch.randn(2, 4, 16), torch.randn(2, 8)
    sln, centered = block.norm1, h - h.mean(-1, keepdim=True)
    normalized = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    close(sln(h, w), sln.gamma(w)[:, None] * normalized + sln.beta(w)[:, None])
    middle = h + block.attention(sln(h, w))
    close(block(h, w), middle + block.mlp(block.norm2(middle, w)))

def test_positions_run_row_by_row_and_d_sees_them(vitgan, make_config):
    grid = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert vitgan.coordinate_grid(2).tolist() == grid  # (x, y)
    D, x = vitgan.Discriminator(make_config(overlap=0)).eval(), torch.randn(4, 3, 8, 8)
    swapped = x.roll(4, -1)  # with o = 0 and two patches in a row: the same set of patches
    assert (D(x) - D(swapped)).abs().min() > 1e-4

def test_every_matrix_of_d_that_sees_the_image_is_spectrally_normalized(vitgan, make_config):
    D = vitgan.Discriminator(make_config(depth=2))
    plain = [n for n, m in D.named_modules() if type(m).__name__ in ("EqualizedLinear", "Linear")]
    assert plain and all(name.startswith("positions.") for name in plain)
    assert sum(type(m).__name__ == "ISNLinear" for m in D.modules()) == 2 + 2 * 5

def test_w_avg_is_the_mean_of_w_in_training_and_truncation_moves_towards_it(vitgan, config):
    G, batches = vitgan.Generator(config), torch.randn(3, 5, config.latent_dim)
    for z in batches:
        G(z)
    w = G.mapping(batches.flatten(0, 1))
    close(G.eval()(batches[0], 0.5), G.synthesize((w.mean(0) + w[:5]) / 2))
    close(G.w_avg, w.mean(0))
