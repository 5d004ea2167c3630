"""Gradients against finite differences, in double precision."""

import pytest
import reference
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

pytestmark = pytest.mark.usefixtures("float64")


def check(layer, *inputs, second=False):
    """gradcheck of a module with respect to its inputs and all of its parameters."""
    names, parameters = zip(*layer.named_parameters())

    def call(*args):
        return functional_call(layer, dict(zip(names, args[len(inputs):])), args[:len(inputs)])

    args = [a.detach().clone().requires_grad_() for a in (*inputs, *parameters)]
    assert gradcheck(call, args)
    if second:
        assert gradgradcheck(call, args)


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_modulated_linear(vitgan, shared, demodulate):
    layer = vitgan.ModulatedLinear(3, 2, 4, demodulate)
    check(layer, torch.randn(5, 3) if shared else torch.randn(2, 5, 3), torch.randn(2, 4))


@pytest.mark.parametrize("sign", [-1, 1])
def test_l2_attention_to_second_order(vitgan, sign):
    inputs = [torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(1, 2, 4, 2, requires_grad=True)]
    assert gradcheck(lambda q, v: vitgan.l2_attention(q, v, sign), inputs)
    assert gradgradcheck(lambda q, v: vitgan.l2_attention(q, v, sign), inputs)


def test_isn_with_u_and_v_held(vitgan):
    layer = vitgan.ISNLinear(4, 3)
    layer.weight.data += 0.3 * torch.randn(3, 4)
    check(layer.eval(), torch.randn(2, 4), second=True)


def test_isn_gradient_is_that_of_the_exact_spectral_norm_once_converged(vitgan):
    layer, x = vitgan.ISNLinear(5, 4), torch.randn(2, 5)
    layer.weight.data += 0.5 * torch.randn(4, 5)
    for _ in range(500):
        layer(x)
    direction = torch.randn(4, 5)
    (fast,) = torch.autograd.grad((layer.eval().effective_weight() * direction).sum(), layer.weight)
    (exact,) = torch.autograd.grad((reference.isn_weight(layer) * direction).sum(), layer.weight)
    torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-8)
    assert gradcheck(lambda W: reference.isn_weight(with_weight(layer, W)), layer.weight.detach().requires_grad_())


def with_weight(layer, W):
    """What reference.isn_weight reads, with another weight."""
    class Layer:
        weight, sigma_init = W, layer.sigma_init
    return Layer


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "scaling", "color,translation,cutout,scaling"])
def test_diff_augment(vitgan, policy):
    def augment(x):
        torch.manual_seed(3)
        return vitgan.diff_augment(x, policy, 0.8)

    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not torch.equal(augment(x), x)
    assert gradcheck(augment, [x])


def test_whole_discriminator_to_second_order(vitgan, make_config):
    D = vitgan.Discriminator(make_config(image_size=4, patch_size=2, width=4, overlap=1)).double().eval()
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert gradcheck(D, [x], fast_mode=True)
    assert gradgradcheck(D, [x], fast_mode=True)


def test_whole_generator(vitgan, make_config):
    G = vitgan.Generator(make_config(image_size=4, patch_size=2, width=4, latent_dim=3)).double().eval()
    assert gradcheck(G, [torch.randn(2, 3, requires_grad=True)])
