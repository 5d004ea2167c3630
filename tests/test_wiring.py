"""Who gets a gradient from whom, what moves, and what must not."""

from collections import Counter

import pytest
import torch
from conftest import VARIANTS


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def without_gradient(module):
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def batch(state):
    """Real images and fakes with their graph: [B, 3, S, S] each."""
    c = state.config
    real = torch.rand(c.batch_size, 3, c.image_size, c.image_size) * 2 - 1
    return real, state.G(torch.randn(c.batch_size, c.latent_dim))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_each_loss_reaches_every_parameter_of_its_network_and_none_of_the_other(vitgan, new_state, overrides):
    state = new_state(depth=2, **overrides)
    real, fake = batch(state)
    vitgan.discriminator_loss(state.D, real, fake, state.config)[0].backward(retain_graph=True)
    assert without_gradient(state.D) == []
    assert all(p.grad is None for p in state.G.parameters())
    state.D.zero_grad(set_to_none=True)
    state.D.requires_grad_(False)
    vitgan.generator_loss(state.D, fake, state.config)[0].backward()
    assert without_gradient(state.G) == []
    assert all(p.grad is None for p in state.D.parameters())


def test_discriminator_loss_has_a_gradient_from_bcr(vitgan, make_config, new_state):
    state = new_state()
    real, fake = batch(state)

    def gradients(bcr):
        torch.manual_seed(1)  # the same augmentation both times
        loss = vitgan.discriminator_loss(state.D.eval(), real, fake, make_config(bcr=bcr))[0]
        return torch.autograd.grad(loss, [p for name, p in state.D.named_parameters() if name != "head.bias"])

    assert all(not torch.equal(a, b) for a, b in zip(gradients(1.0), gradients(0.0)))


def test_eval_forward_of_d_changes_no_buffer_and_train_forward_iterates(vitgan, config):
    D, x = vitgan.Discriminator(config), torch.randn(4, 3, 8, 8)
    layers = {name: m for name, m in D.named_modules() if type(m).__name__ == "ISNLinear"}
    for layer in layers.values():  # away from the singular vectors, where an iteration changes nothing
        layer.weight.data += 0.5 * torch.randn_like(layer.weight)
    before = values(D)
    D.eval()(x)
    assert same(values(D), before)
    D.train()(x)
    for name, layer in layers.items():
        assert not torch.equal(layer.v, before[f"{name}.v"])
        assert layer.u.numel() == 1 or not torch.equal(layer.u, before[f"{name}.u"])
        assert torch.equal(layer.sigma_init, before[f"{name}.sigma_init"])


def test_g_has_two_slns_per_block_and_one_after_the_last(vitgan, make_config):
    kinds = Counter(type(m).__name__ for m in vitgan.Generator(make_config(depth=3)).modules())
    assert kinds["SelfModulatedLayerNorm"] == 2 * 3 + 1
    kinds = Counter(type(m).__name__ for m in vitgan.Discriminator(make_config(depth=3)).modules())
    assert kinds["LayerNorm"] == 2 * 3 + 1
