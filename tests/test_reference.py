"""The notebook's fast forms equal the literal ones of reference.py."""
import copy

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

SMALL = st.integers(1, 9)

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

@given(SMALL, st.integers(1, 3), SMALL, SMALL, st.sampled_from([-1, 1]), st.floats(0.1, 3))
def test_l2_attention(vitgan, batch, heads, tokens, d, sign, size):
    torch.manual_seed(d)
    q, v = size * torch.randn(batch, heads, tokens, d), torch.randn(batch, heads, tokens, d)
    fast, literal = vitgan.l2_attention(q, v, sign), reference.l2_attention(q, v, sign)
    close(fast, literal, 3e-5)  # |k|^2 - 2 q k cancels

@given(SMALL, SMALL)
def test_isn_is_exact_at_the_start_and_after_enough_iterations(vitgan, fan_in, fan_out):
    """Its gradient, too."""
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

SIZES = st.integers(1, 4)

@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 5), st.integers(0, 4))
def test_overlapping_patches(vitgan, batch, channels, grid, patch_size, overlap):
    x = torch.randn(batch, channels, grid * patch_size, grid * patch_size)
    patches = vitgan.OverlappingPatches(patch_size, overlap)(x)
    assert torch.equal(patches, reference.overlapping_patches(x, patch_size, overlap))

@pytest.mark.parametrize("sizes", [{}, dict(overlap=0), dict(patch_size=2), dict(patch_size_d=2)])
def test_whole_networks(vitgan, make_config, sizes):
    config = make_config(depth=2, **sizes)
    G, D = vitgan.Generator(config).eval(), vitgan.Discriminator(config).eval()
    for network, batch in ((G, torch.randn(3, 8)), (D, torch.randn(3, 3, 8, 8))):
        literal = reference.make_literal(copy.deepcopy(network))
        assert any("forward" in vars(m) for m in literal.modules())
        close(network(batch), literal(batch), 1e-4)
