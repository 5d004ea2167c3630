"""The two losses, one training step, and the loop around it: nothing between."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import VARIANTS
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import helpers

RESUMED = ("G", "D", "G_ema", "opt_G", "opt_D", "images_seen", "rng")


def mean_logit(x):
    """A discriminator whose logit is the mean of the image."""
    return x.mean((1, 2, 3))


def constant(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(a, b):
    """Equal to the last bit, however nested."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# losses


def test_discriminator_loss_and_generator_loss_are_those_of_goodfellow(vitgan, make_config):
    c, real, fake = make_config(augment="", bcr=0.0), constant(1.0, 2.0), constant(-0.5, 0.0)
    p = lambda x: torch.sigmoid(mean_logit(x))  # noqa: E731
    loss, stats = vitgan.discriminator_loss(mean_logit, real, fake, c)
    torch.testing.assert_close(loss, -(p(real).log() + (1 - p(fake)).log()).mean())
    assert stats["logit_real"] == 1.5 and stats["logit_fake"] == -0.25
    torch.testing.assert_close(vitgan.generator_loss(mean_logit, fake, c)[0], -p(fake).log().mean())


def test_discriminator_loss_compares_each_image_with_its_own_augmentation(vitgan, make_config, monkeypatch):
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy: x + constant(0.1, 0.2, 0.3, 0.4))
    loss, stats = vitgan.discriminator_loss(mean_logit, constant(1.0, 2.0), constant(5.0, -3.0), make_config(bcr=10.0))
    assert stats["bcr"].item() == pytest.approx(10 * (0.1**2 + 0.2**2 + 0.3**2 + 0.4**2) / 2, rel=1e-4)
    assert loss.item() == pytest.approx((stats["d_loss"] + stats["bcr"]).item(), rel=1e-5)


@pytest.mark.parametrize("adversarial_on, shown", [("augmented", 7.0), ("plain", 0.0)])
def test_discriminator_loss_and_generator_loss_judge_what_they_are_told_to(vitgan, make_config, monkeypatch, adversarial_on, shown):
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy: x + 7)
    c = make_config(adversarial_on=adversarial_on)
    _, stats = vitgan.discriminator_loss(mean_logit, constant(1.0, 2.0), constant(0.0, 0.0), c)
    assert stats["logit_real"] == 1.5 + shown and stats["logit_fake"] == shown
    assert vitgan.generator_loss(mean_logit, constant(0.0), c)[0].item() == pytest.approx(math.log1p(math.exp(-shown)))


def test_discriminator_loss_has_a_gradient_from_bcr(vitgan, make_config, new_state):
    D, (real, fake) = new_state().D.eval(), torch.rand(2, 4, 3, 8, 8) * 2 - 1

    def gradients(bcr):
        torch.manual_seed(1)  # the same augmentation both times
        loss = vitgan.discriminator_loss(D, real, fake, make_config(bcr=bcr))[0]
        return torch.autograd.grad(loss, [p for name, p in D.named_parameters() if name != "head.bias"])

    assert all(not torch.equal(a, b) for a, b in zip(gradients(1.0), gradients(0.0)))


def test_float16_follows_float32_in_g_d_and_both_losses(vitgan, make_config):
    """Float16 keeps 11 bits: images, logits and losses agree to 0.02 after two blocks, all of size 1."""
    c = make_config(depth=2, augment="translation")
    G, D = vitgan.Generator(c).eval(), vitgan.Discriminator(c).eval()
    z, real = torch.randn(16, c.latent_dim), torch.rand(16, 3, 8, 8) * 2 - 1

    def outputs():
        torch.manual_seed(1)
        fake = G(z).float()
        return fake, D(real).float(), vitgan.discriminator_loss(D, real, fake, c)[0], vitgan.generator_loss(D, fake, c)[0]

    exact = outputs()
    with torch.autocast("cpu", torch.float16):
        half = outputs()
        assert D(real).dtype == torch.float16
    for a, b in zip(half, exact):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


# one step


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_train_step_moves_every_weight_of_g_d_and_the_ema(vitgan, new_state, images, overrides):
    state = new_state(depth=2, **overrides)
    before = [values(network) for network in (state.G, state.D, state.G_ema)]
    stats = vitgan.train_step(state, images)
    for old, network in zip(before, (state.G, state.D, state.G_ema)):
        assert [name for name, p in network.named_parameters() if torch.equal(p, old[name])] == []
    assert set(stats) == {"d_loss", "g_loss", "logit_real", "logit_fake", "bcr"} and state.images_seen == 4
    assert not any(value.requires_grad for value in stats.values())
    assert state.D.training and all(p.requires_grad for p in state.D.parameters())


def test_train_step_leaves_d_alone_while_g_learns(vitgan, new_state, images, monkeypatch):
    """D, with its buffers, is to the last bit what its own update left."""
    state, seen = new_state(), []
    loss = vitgan.generator_loss
    monkeypatch.setattr(vitgan, "generator_loss", lambda D, *rest: seen.append(values(D)) or loss(D, *rest))
    vitgan.train_step(state, images)
    assert_same(values(state.D), seen[0])


@pytest.mark.parametrize("seen, half_life", [(10_000, 20), (0, 0.2), (396, 20)])
def test_train_step_halves_old_ema_weights_in_half_life_images_and_sooner_at_the_start(vitgan, new_state, images, seen, half_life):
    state = new_state(ema_half_life=20)
    state.images_seen = seen
    before = copy.deepcopy(state.G_ema)
    vitgan.train_step(state, images)
    decay = 0.5 ** (4 / half_life)
    for old, kept, new in zip(before.parameters(), state.G_ema.parameters(), state.G.parameters()):
        torch.testing.assert_close(kept, decay * old + (1 - decay) * new)
    assert torch.equal(state.G_ema.w_avg, state.G.w_avg) and state.G.w_avg.abs().max() > 0 and not state.G_ema.training


def test_train_step_can_teach_d_to_tell_noise_from_stripes(vitgan, new_state):
    """With G held still, D's loss falls clearly below the 2 ln 2 of guessing."""
    state = new_state(batch_size=16, bcr=0.1, augment="translation", lr_g=0.0)
    stripes = (torch.arange(8) % 2 * 255).to(torch.uint8).expand(16, 3, 8, 8)
    for _ in range(40):
        stats = vitgan.train_step(state, stripes)
    assert stats["d_loss"] < 0.9 and stats["logit_real"] - stats["logit_fake"] > 1


def fake_gradients(loss, **_):
    """In place of backward, which needs a real GPU: a gradient for every leaf that the loss depends on."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node and node not in seen:
            seen.add(node)
            waiting += [n for n, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.ones_like(node.variable)


@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:Accessing the data pointer")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_step_on_cuda_mixes_no_devices_and_never_waits_for_the_gpu(vitgan, make_config, monkeypatch, precision):
    """Fake tensors know shapes and devices but hold no values, so whatever reads one on the host raises."""
    mode = FakeTensorMode()
    monkeypatch.setattr(vitgan, "copy", SimpleNamespace(deepcopy=lambda x: copy.deepcopy(x, {id(mode): mode})))
    monkeypatch.setattr(vitgan, "fingerprint", lambda images: "")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)  # they are made there
    monkeypatch.setattr(torch.Tensor, "backward", fake_gradients)
    with mode, torch.device("cuda"):
        images = torch.zeros(32, 3, 8, 8, dtype=torch.uint8)
        state = vitgan.TrainState(make_config(precision=precision), images)
    with mode:
        stats = vitgan.train_step(state, images)
        networks = (state.G, state.D, state.G_ema)
        assert {t.device.type for n in networks for t in n.state_dict().values()} == {"cuda"}
        assert all(p.grad is not None for n in networks[:2] for p in n.parameters())
        assert {value.device.type for value in stats.values()} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            stats["d_loss"].item()
        with pytest.raises(RuntimeError, match="on the same device"):
            state.G.w_avg + torch.zeros(16)


# the loop


def test_train_is_determined_by_its_seed(train):
    a, b, c = (values(train(folder, seed=seed, total_images=8).G_ema) for folder, seed in [("a", 1), ("b", 1), ("c", 2)])
    assert_same(a, b)
    assert not torch.equal(a["decoder.out.linear.weight"], c["decoder.out.linear.weight"])


def test_train_logs_averages_and_snapshots_when_due(vitgan, train, monkeypatch):
    step, stats, seen = vitgan.train_step, [], []
    monkeypatch.setattr(vitgan, "train_step", lambda *a: stats.append(step(*a)) or stats[-1])
    state = train(on_snapshot=lambda state, samples: seen.append(state.images_seen), snapshot_minutes=60.0)
    losses = [s["d_loss"].item() for s in stats]
    assert [e["d_loss"] for e in state.history] == pytest.approx([(a + b) / 2 for a, b in zip(losses[::2], losses[1::2])])
    assert [e["images"] for e in state.history] == [8, 16, 24] and seen == [24]
    assert ["swd" in e for e in state.history] == [False, False, True]


def test_train_stops_after_max_minutes_and_goes_on_with_more(train):
    assert train(total_images=400, max_minutes=1e-9).images_seen == 8
    assert train(total_images=16).images_seen == 16


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_pick_dtype_takes_bfloat16_only_where_a_gpu_has_it(monkeypatch, native, dtype):
    """A T4 only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert helpers.pick_dtype(torch.device("cuda")) == dtype
    assert helpers.pick_dtype(torch.device("cuda"), "float32") == torch.float32
