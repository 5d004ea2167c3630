"""The two losses, one training step, and the loop around it."""
import copy
import math

import pytest
import reference
import torch

import helpers


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

# Losses

def test_losses_are_those_of_goodfellow(vitgan):
    real, fake = constant(1.0, 2.0), constant(-0.5, 0.0)
    p = lambda x: torch.sigmoid(mean_logit(x))  # noqa: E731
    loss, stats = vitgan.discriminator_loss(mean_logit, real, fake, "", 0.0)
    torch.testing.assert_close(loss, -(p(real).log() + (1 - p(fake)).log()).mean())
    assert stats["logit_real"] == 1.5 and stats["logit_fake"] == -0.25
    loss = vitgan.generator_loss(mean_logit, fake, "")[0]
    torch.testing.assert_close(loss, -p(fake).log().mean())

def test_bcr_compares_each_image_with_its_own_augmentation(vitgan, monkeypatch):
    shift = constant(0.1, 0.2, 0.3, 0.4)
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy: x + shift)
    real, fake = constant(1.0, 2.0), constant(5.0, -3.0)
    loss, stats = vitgan.discriminator_loss(mean_logit, real, fake, "color", 10.0)
    expected = 10 * (0.1**2 + 0.2**2 + 0.3**2 + 0.4**2) / 2
    assert stats["bcr"].item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx((stats["d_loss"] + stats["bcr"]).item(), rel=1e-5)

def test_losses_judge_augmented_images_of_the_policy_asked_for(vitgan, monkeypatch):
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy: x + len(policy))
    _, stats = vitgan.discriminator_loss(mean_logit, constant(1.0), constant(0.0), "cutout", 1.0)
    assert stats["logit_real"] == 7 and stats["logit_fake"] == 6
    loss = vitgan.generator_loss(mean_logit, constant(0.0), "cutout")[0]
    assert loss.item() == pytest.approx(math.log1p(math.exp(-6)))

def test_discriminator_loss_has_a_gradient_from_bcr(vitgan, new_state, device):
    D, (real, fake) = new_state().D.eval(), torch.rand(2, 4, 3, 8, 8, device=device) * 2 - 1

    def gradients(bcr):
        torch.manual_seed(1)  # the same augmentation both times
        loss = vitgan.discriminator_loss(D, real, fake, "color,translation", bcr)[0]
        learn = [p for name, p in D.named_parameters() if name != "head.bias"]
        return torch.autograd.grad(loss, learn)

    both = zip(gradients(1.0), gradients(0.0), strict=True)
    assert not any(torch.equal(a, b) for a, b in both)

# One step

def draw_on_the_cpu(monkeypatch):
    """All devices draw the CPU's random numbers from now on."""
    for draw in (torch.rand, torch.randn, torch.randint):
        monkeypatch.setattr(torch, draw.__name__, lambda *sizes, device="cpu", draw=draw, **rest:
                            draw(*sizes, **rest).to(device))

@pytest.mark.parametrize("precision, tolerance", [  # of losses and of gradients' direction
    ("float32", 1e-4), ("float16", 0.01), ("bfloat16", 0.05)])
def test_train_step_in_each_format_follows_literal_float32_on_the_cpu(
        vitgan, make_config, images, device, monkeypatch, precision, tolerance):
    """Losses within the tolerance, relative above 1; the gradients of G and of D, a vector each,
    within it of the literal ones' length. Rates are 0, since Adam's step is mostly a sign.
    A float has 24, 11 or 8 bits, so one rounding costs 6e-8, 5e-4 or 4e-3."""
    draw_on_the_cpu(monkeypatch)
    still = dict(depth=2, lr_g=0.0, lr_d=0.0, bcr=1.0, batch_size=16)
    state = vitgan.TrainState(make_config(precision=precision, **still), device)
    literal = vitgan.TrainState(make_config(**still), torch.device("cpu"))
    assert_same({k: v.cpu() for k, v in values(state.D).items()}, values(literal.D))
    for network in (literal.G, literal.D):
        reference.make_literal(network)
    found = []
    for it, its_images in ((state, images), (literal, images.cpu())):
        torch.manual_seed(1)
        with torch.no_grad(), it.autocast():
            logits = it.D(torch.zeros(2, 3, 8, 8, device=its_images.device))
        assert logits.dtype == getattr(torch, it.config.precision)
        found.append(vitgan.train_step(it, its_images))
    for name, exact in found[1].items():
        assert found[0][name].item() == pytest.approx(exact.item(), rel=tolerance, abs=tolerance)
    for network, expected in ((state.G, literal.G), (state.D, literal.D)):
        a, b = (torch.cat([p.grad.cpu().flatten() for p in net.parameters()])
                for net in (network, expected))
        assert b.norm() > 0 and (a - b).norm() < tolerance * b.norm()

@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_train_step_moves_every_weight_of_g_d_and_the_average(vitgan, new_state, images, precision):
    state = new_state(depth=2, precision=precision)
    networks = (state.G, state.D, state.G_ema)
    before = [values(network) for network in networks]
    stats = vitgan.train_step(state, images)
    for old, network in zip(before, networks, strict=True):
        same = [name for name, p in network.named_parameters() if torch.equal(p, old[name])]
        assert same == [] and all(p.isfinite().all() for p in network.parameters())
    assert set(stats) == {"d_loss", "g_loss", "logit_real", "logit_fake", "bcr"}
    assert not any(value.requires_grad for value in stats.values()) and state.images_seen == 4
    assert state.D.training and all(p.requires_grad for p in state.D.parameters())

def test_train_step_leaves_d_alone_while_g_learns(vitgan, new_state, images, monkeypatch):
    """D, with its buffers and gradients, is to the last bit what its own update left."""
    state, seen, loss = new_state(), [], vitgan.generator_loss

    def watch(D, *rest):
        seen.append((values(D), [p.grad.clone() for p in D.parameters()]))
        return loss(D, *rest)

    monkeypatch.setattr(vitgan, "generator_loss", watch)
    vitgan.train_step(state, images)
    assert_same((values(state.D), [p.grad for p in state.D.parameters()]), seen[0])

@pytest.mark.parametrize("seen, half_life", [(10_000, 20), (0, 0.2), (396, 20)])
def test_average_halves_old_weights_in_half_life_images_and_sooner_at_the_start(
        vitgan, new_state, images, seen, half_life):
    state = new_state(ema_half_life=20)
    state.images_seen = seen
    before = copy.deepcopy(state.G_ema)
    vitgan.train_step(state, images)
    decay = 0.5 ** (4 / half_life)
    networks = (before, state.G_ema, state.G)
    for old, kept, new in zip(*(net.parameters() for net in networks), strict=True):
        torch.testing.assert_close(kept, decay * old + (1 - decay) * new)
    assert torch.equal(state.G_ema.w_avg, state.G.w_avg) and state.G.w_avg.abs().max() > 0
    assert not state.G_ema.training

@pytest.mark.filterwarnings("error:left out")
def test_compiled_networks_train_as_plain_ones_do(
        vitgan, new_state, images, device, monkeypatch):
    """Losses of two steps within 1e-3: the same float32 sums, in another order. On the CPU without
    the C++ compiler, which would take minutes: a graph is traced, split, and run as it is."""
    if device.type == "cpu":
        compile_fully = torch.nn.Module.compile
        monkeypatch.setattr(torch.nn.Module, "compile", lambda network, **options: compile_fully(
            network, backend="aot_eager", **options))
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:
        pytest.skip(f"no compiler for {device}: {type(error).__name__}")
    losses = []
    for compile in (False, True):
        state = new_state(compile=compile)
        assert (state.D._compiled_call_impl is not None) == compile
        losses += [vitgan.train_step(state, images), vitgan.train_step(state, images)]
    for plain, compiled in zip(losses[:2], losses[2:], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)

# The loop

def test_train_is_determined_by_its_seed(train):
    a, b, c = (values(train(folder, seed=seed, total_images=8).G_ema)
               for folder, seed in [("a", 1), ("b", 1), ("c", 2)])
    assert_same(a, b)
    assert not torch.equal(a["decoder.out.linear.weight"], c["decoder.out.linear.weight"])

def test_train_goes_on_to_the_same_bits(train, make_config):
    """On the device, in its own number format."""
    whole = train(precision="auto" if torch.accelerator.is_available() else "float32")
    for total in (8, 16, 24):
        parts = train("parts", total_images=total, precision=whole.config.precision)
    for name in ("G", "D", "G_ema", "opt_G", "opt_D", "scaler"):
        assert_same(getattr(parts, name).state_dict(), getattr(whole, name).state_dict())
    assert [e["d_loss"] for e in parts.history] == [e["d_loss"] for e in whole.history]

def test_train_logs_averages_and_snapshots_at_the_end(vitgan, train, monkeypatch, tmp_path):
    step, stats = vitgan.train_step, []
    monkeypatch.setattr(vitgan, "train_step", lambda *a: stats.append(step(*a)) or stats[-1])
    history = train().history
    losses = [s["d_loss"].item() for s in stats]
    means = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert [entry["d_loss"] for entry in history] == pytest.approx(means)
    assert [entry["images"] for entry in history] == [8, 16, 24]
    assert ["swd" in entry for entry in history] == [False, False, True]
    strips = [path.name for path in (tmp_path / "run").glob("*.png")]
    assert strips == ["samples-000000024.png"]

def test_train_stops_after_max_minutes_and_goes_on_with_more(train):
    assert train(total_images=400, max_minutes=1e-9).images_seen == 8
    assert train(total_images=16).images_seen == 16

@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_takes_bfloat16_only_where_a_gpu_has_it(vitgan, monkeypatch, native, dtype):
    """A T4 only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: native or including_emulation)
    autocast = []
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: autocast.append((*a, k)))
    for precision in ("auto", "float32"):
        vitgan.mixed_precision(torch.device("cuda"), precision)[0]()
    assert autocast == [("cuda", dtype, {"enabled": True}),
                        ("cuda", torch.float32, {"enabled": False})]

# The whole

@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope="module")
def smoke(vitgan):
    """100 steps of the smoke profile on digits: (images, function to configure, literal run)."""
    data, cpu = helpers.load_images(16, "digits"), torch.device("cpu")
    configure = lambda **chosen: vitgan.configure(  # noqa: E731
        data, cpu, "smoke", precision="float32", **chosen)[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    literal = reference.training_loop(configure(), data.pixels, 100, vitgan)
    torch.set_num_threads(threads)
    return data.pixels, configure, literal

@pytest.mark.parametrize("totals", [(1600,), (800, 1600)], ids=["at once", "after a stop half-way"])
def test_100_steps_are_those_of_a_literal_loop_to_the_last_bit(
        vitgan, smoke, one_thread, tmp_path, totals):
    """The comparison is with a literal loop that runs here, not with a stored digest: sums are in
    another order on another kind of machine, and so are the last bits."""
    pixels, configure, (G, D, average, losses) = smoke
    for total in totals:
        state = vitgan.train(configure(total_images=total), pixels, tmp_path)
    assert state.images_seen == 1600
    for network, literal in ((state.G, G), (state.D, D), (state.G_ema, average)):
        assert_same(network.state_dict(), literal.state_dict())
    loss_D = [entry["d_loss"] + entry["bcr"] for entry in state.history]
    halves = [sum(d for d, _ in half) / 50 for half in (losses[:50], losses[50:])]
    assert loss_D == pytest.approx(halves, rel=1e-4)
