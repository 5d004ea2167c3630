"""Who gets a gradient from whom, what moves, and what must not."""

import copy
from collections import Counter

import helpers
import pytest
import torch
from conftest import CONV, VARIANTS


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def without_gradient(module):
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def batch(run):
    """Real images and fakes with their graph: [B, 3, S, S] each."""
    c = run.config
    real = torch.rand(c.batch_size, 3, c.image_size, c.image_size) * 2 - 1
    return real, run.G(torch.randn(c.batch_size, c.latent_dim))


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), CONV], ids=[*VARIANTS, "conv"])
def test_each_loss_reaches_every_parameter_of_its_network_and_none_of_the_other(vitgan, new_run, overrides):
    run = new_run(blocks=2, **overrides)
    real, fake = batch(run)
    vitgan.discriminator_loss(run.D, real, fake, run.config)[0].backward(retain_graph=True)
    assert without_gradient(run.D) == []
    assert all(p.grad is None for p in run.G.parameters())
    run.D.zero_grad(set_to_none=True)
    run.D.requires_grad_(False)
    vitgan.generator_loss(run.D, fake, run.config)[0].backward()
    assert without_gradient(run.G) == []
    assert all(p.grad is None for p in run.D.parameters())


def test_bcr_has_a_gradient_of_its_own(vitgan, new_run):
    run = new_run()
    real, fake = batch(run)

    def gradients(bcr_weight):
        torch.manual_seed(1)  # the same augmentation both times
        loss = vitgan.discriminator_loss(run.D.eval(), real, fake, run.config, bcr_weight)[0]
        return torch.autograd.grad(loss, [p for name, p in run.D.named_parameters() if name != "head.bias"])

    assert all(not torch.equal(a, b) for a, b in zip(gradients(1.0), gradients(0.0)))


def test_discriminator_step_moves_d_only(vitgan, new_run):
    run = new_run()
    real, fake = batch(run)
    before_g, before = state(run.G), {name: p.detach().clone() for name, p in run.D.named_parameters()}
    vitgan.discriminator_step(run, real, fake)
    assert same(state(run.G), before_g) and all(p.grad is None for p in run.G.parameters())
    assert [name for name, p in run.D.named_parameters() if torch.equal(p, before[name])] == []


def test_generator_step_moves_g_only_to_the_last_bit(vitgan, new_run):
    run = new_run(lecam=1.0)
    real, fake = batch(run)
    vitgan.discriminator_step(run, real, fake)  # now no buffer of D is at a fixed point
    before_d, gradients = state(run.D), [p.grad.clone() for p in run.D.parameters()]
    before = {name: p.detach().clone() for name, p in run.G.named_parameters()}
    vitgan.generator_step(run, [fake])
    assert same(state(run.D), before_d)
    assert all(torch.equal(p.grad, g) for p, g in zip(run.D.parameters(), gradients))
    assert [name for name, p in run.G.named_parameters() if torch.equal(p, before[name])] == []
    assert run.D.training and all(p.requires_grad for p in run.D.parameters())


def test_generator_step_follows_its_loss_downhill(vitgan, new_run):
    run = new_run(augment="", lr_g=1e-4)
    z = torch.randn(16, run.config.latent_dim)
    run.D.eval()
    loss = lambda: vitgan.generator_loss(run.D, run.G(z), run.config)[0]  # noqa: E731
    before = loss().item()
    vitgan.generator_step(run, [run.G(z)])
    run.D.eval()
    assert loss().item() < before


def test_discriminator_step_follows_its_loss_downhill(vitgan, new_run):
    run = new_run(augment="", lr_d=1e-4)
    real, fake = batch(run)
    before = vitgan.discriminator_step(run, real, fake)["d_loss"]
    assert vitgan.discriminator_step(run, real, fake)["d_loss"] < before


# ------------------------------------------------------------------------------------------------------------- buffers


def test_eval_forward_of_d_changes_no_buffer_and_train_forward_iterates(vitgan, config):
    D, x = vitgan.Discriminator(config), torch.randn(4, 3, 8, 8)
    layers = {name: m for name, m in D.named_modules() if type(m).__name__ == "ISNLinear"}
    for layer in layers.values():  # away from the singular vectors, where an iteration changes nothing
        layer.weight.data += 0.5 * torch.randn_like(layer.weight)
    before = state(D)
    D.eval()(x)
    assert same(state(D), before)
    D.train()(x)
    for name, layer in layers.items():
        assert not torch.equal(layer.v, before[f"{name}.v"])
        assert layer.u.numel() == 1 or not torch.equal(layer.u, before[f"{name}.u"])
        assert torch.equal(layer.sigma_init, before[f"{name}.sigma_init"])


def test_one_power_iteration_per_forward_brings_u_and_v_to_the_singular_vectors(vitgan):
    layer, x = vitgan.ISNLinear(16, 12).train(), torch.randn(2, 16)
    u, s, vt = torch.linalg.svd(torch.randn(12, 16), full_matrices=False)
    layer.weight.data = u * (2.0 ** -torch.arange(12)) @ vt
    overlaps = []
    for _ in range(12):
        layer(x)
        overlaps.append((layer.u @ u[:, 0]).abs().item())
    assert overlaps[0] < 0.999 < 0.999999 < overlaps[-1]


# ------------------------------------------------------------------------------------------------------------- sharing


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_no_module_stands_at_two_places_or_runs_twice(vitgan, make_config, overrides):
    """The post shares one norm between both halves of a block."""
    config = make_config(blocks=2, **overrides)
    for network, x in [(vitgan.Generator(config), torch.randn(2, config.latent_dim)),
                       (vitgan.Discriminator(config), torch.randn(2, 3, 8, 8))]:
        places = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
        assert set(places.values()) == {1}
        pointers = [p.data_ptr() for p in network.parameters()]
        assert len(set(pointers)) == len(pointers)
        runs = Counter()
        norms = {name: m for name, m in network.named_modules() if "Norm" in type(m).__name__}
        for name, module in norms.items():
            module.register_forward_hook(lambda module, args, out, name=name: runs.update([name]))
        network(x)
        assert runs == Counter(norms.keys())


def test_g_has_two_slns_per_block_and_one_after_the_last(vitgan, make_config):
    kinds = Counter(type(m).__name__ for m in vitgan.Generator(make_config(blocks=3)).modules())
    assert kinds["SelfModulatedLayerNorm"] == 2 * 3 + 1
    kinds = Counter(type(m).__name__ for m in vitgan.Discriminator(make_config(blocks=3)).modules())
    assert kinds["LayerNorm"] == 2 * 3 + 1


# ----------------------------------------------------------------------------------------------------------------- EMA


def test_half_life_is_in_images():
    late = 10**9
    assert helpers.ema_decay(64, late, 1000) ** (1000 / 64) == pytest.approx(0.5)
    assert helpers.ema_decay(1, late, 7) == pytest.approx(0.5 ** (1 / 7))


def test_ema_ramps_up_at_the_start():
    decays = [helpers.ema_decay(64, seen, 100_000) for seen in (0, 64, 6_400, 640_000, 64_000_000)]
    assert decays == sorted(decays) and decays[0] == 0 and decays[1] < 1e-3
    assert decays[2] == pytest.approx(0.5 ** (64 / 320)) and decays[-1] == pytest.approx(0.5 ** (64 / 100_000))


def test_after_half_life_images_half_of_the_old_weights_is_left():
    ema, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(ema.weight)
    torch.nn.init.ones_(model.weight)
    for _ in range(25):
        helpers.update_ema(ema, model, helpers.ema_decay(8, 10**9, 200))
    torch.testing.assert_close(ema.weight, torch.full((2, 3), 0.5))


def test_training_step_moves_the_ema_part_of_the_way_to_g(vitgan, new_run, images):
    run = new_run(ema_half_life=20)
    run.images_seen = 10_000  # past the ramp
    before = copy.deepcopy(run.ema)
    vitgan.training_step(run, images)
    decay = 0.5 ** (run.config.batch_size / 20)
    for old, kept, new in zip(before.parameters(), run.ema.parameters(), run.G.parameters()):
        torch.testing.assert_close(kept, decay * old + (1 - decay) * new)
        assert not torch.equal(kept, old) and not kept.requires_grad
    assert torch.equal(run.ema.w_mean, run.G.w_mean) and run.G.w_mean.abs().max() > 0
    assert not run.ema.training


def test_samples_come_from_the_ema(vitgan, train):
    seen = []
    run = train(on_snapshot=lambda run, samples: seen.append(samples.clone()), ema_half_life=10**6)
    z = vitgan.fixed_noise(run.config, 64)
    assert torch.equal(seen[-1], vitgan.sample(run.ema, z))
    assert not torch.equal(seen[-1], vitgan.sample(run.G.eval(), z))


def test_optimizers_hold_exactly_their_network_with_the_papers_betas(vitgan, new_run):
    run = new_run()
    for network, optimizer in [(run.G, run.opt_g), (run.D, run.opt_d)]:
        (group,) = optimizer.param_groups
        assert list(map(id, group["params"])) == list(map(id, network.parameters()))
        assert tuple(group["betas"]) == (0.0, 0.99) and group["weight_decay"] == 0
