"""The notebook's fast forms equal the literal ones of reference.py; what else the networks are."""

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
    fast, exact = (
        torch.autograd.grad((W * direction).sum(), layer.weight)[0]
        for W in (layer.effective_weight(), reference.isn_weight(layer))
    )
    close(fast, exact, 1e-4)


AUGMENTATIONS = ["color", "translation", "cutout", "scaling"]
POLICIES = st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(",".join)
SHARES = st.sampled_from([(), (0.0,), (0.5,), (1.0,)])


@given(POLICIES, SHARES, st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_diff_augment(vitgan, policy, share, batch, size, seed):
    x = (torch.rand(batch, 3, size, size) * 2 - 1).requires_grad_()
    torch.manual_seed(seed)
    fast, state = vitgan.diff_augment(x, policy, *share), torch.get_rng_state()
    torch.manual_seed(seed)
    literal = reference.diff_augment(x, policy, *share)
    assert torch.equal(state, torch.get_rng_state())
    close(fast, literal)
    close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (fast, literal)))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(overlap_d=0),
        dict(patch_size_g=2),
        dict(patch_size_d=2),
        dict(patch_size_g=1, heads=1),
        dict(overlap_g=1, qk_norm=True, pool_d="mean"),
        dict(patch_size_g=2, overlap_g=1, mapping_layers=0, latent_dim=16),
    ],
)
def test_whole_networks(vitgan, make_config, sizes):
    """Nor do the images of a batch mix. The literal D fails on a layer without sigma_init."""
    config = make_config(depth=2, **sizes)
    G, D = vitgan.Generator(config).eval(), vitgan.Discriminator(config).eval()
    for bias in (p for p in [*G.parameters(), *D.parameters()] if p.ndim == 1):
        bias.data += torch.randn_like(bias)  # many start at zero, where they would not show
    for network, batch, shape in (
        (G, torch.randn(3, config.latent_dim), (3, 3, 8, 8)),
        (D, torch.randn(3, 3, 8, 8), (3,)),
    ):
        literal = reference.make_literal(copy.deepcopy(network))
        assert network(batch).shape == shape
        close(network(batch), literal(batch), 1e-4)
        close(network(batch)[1:2], network(batch[1:2]), 1e-4)


@pytest.mark.parametrize("squared_norm", [1.0, 300.0, 200_000.0])
def test_l2_attention_in_float16_is_finite_and_near_float32(vitgan, device, squared_norm):
    """A network's |q|^2 is in the hundreds; float16 ends at 65,504, so queries are scaled first."""
    q, v = torch.randn(2, 2, 3, 16, 64, device=device).requires_grad_()
    q = q / q.norm(dim=-1, keepdim=True) * squared_norm**0.5
    exact = torch.softmax(vitgan.l2_scores(q), -1) @ v
    with torch.autocast(device.type, torch.float16):
        half = torch.softmax(vitgan.l2_scores(q), -1) @ v
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.01)
    (gradient,) = torch.autograd.grad(half.float().sum(), q)
    assert gradient.isfinite().all()


def test_w_avg_is_the_mean_of_w_in_training_and_truncation_moves_towards_it(vitgan, make_config):
    G, batches = vitgan.Generator(make_config()), torch.randn(3, 5, 8)
    for z in batches:
        G(z)
    w = G.mapping(batches.flatten(0, 1))
    close(G.w_avg, w.mean(0))
    closer = G.eval()(batches[0], 0.25)
    close(closer, G.synthesize(0.75 * w.mean(0) + 0.25 * w[:5]))
    assert torch.equal(vitgan.sample(G, batches[0], 0.25), vitgan.to_uint8(closer))
    G.train().num_w_batches.fill_(9999)  # from 500 batches on, a running mean
    G(batches[0])
    close(G.w_avg, 0.998 * w.mean(0) + 0.002 * w[:5].mean(0))


def test_fourier_features_have_the_step_they_are_given(vitgan):
    f = vitgan.FourierFeatures(8, 4096, 0.3)
    argument = f.project(f.coords).unflatten(0, (8, 8))
    assert abs(argument.diff(dim=1).square().mean().sqrt() - 0.3) < 0.03
