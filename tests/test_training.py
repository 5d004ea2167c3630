"""Losses, the training loop, and what it leaves behind."""

import math

import helpers
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

KEYS = {"images", "seconds", "d_loss", "g_loss", "logit_real", "logit_fake", "bcr"}


class StubD(torch.nn.Module):
    """A discriminator whose logit is the mean of the image, and which counts its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []
        self.register_buffer("logit_means", torch.zeros(2))

    def forward(self, x):
        self.batches.append(len(x))
        return x.mean((1, 2, 3))


def constant(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


# -------------------------------------------------------------------------------------------------------------- losses


def test_logistic_losses_are_those_of_goodfellow(vitgan, make_config):
    c, real, fake = make_config(augment="", bcr_real=0.0, bcr_fake=0.0), constant(1.0, 2.0), constant(-0.5, 0.0)
    p = lambda x: torch.sigmoid(x.mean((1, 2, 3)))  # noqa: E731
    loss, logged = vitgan.discriminator_loss(StubD(), real, fake, c)
    torch.testing.assert_close(loss, -(p(real).log() + (1 - p(fake)).log()).mean())
    assert logged["logit_real"] == 1.5 and logged["logit_fake"] == -0.25
    torch.testing.assert_close(vitgan.generator_loss(StubD(), fake, c)[0], -p(fake).log().mean())


def test_undecided_d_has_the_loss_of_two_coins(vitgan, make_config):
    loss, _ = vitgan.discriminator_loss(StubD(), constant(0.0), constant(0.0), make_config(augment=""))
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_bcr_compares_each_image_with_its_own_augmentation(vitgan, make_config, monkeypatch):
    shift = constant(0.1, 0.2, 0.3, 0.4)
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy, p: x + shift)
    real, fake = constant(1.0, 2.0), constant(5.0, -3.0)
    D, c = StubD(), make_config(bcr_real=10.0, bcr_fake=2.0)
    loss, logged = vitgan.discriminator_loss(D, real, fake, c)
    expected = 10 * (0.1**2 + 0.2**2) / 2 + 2 * (0.3**2 + 0.4**2) / 2
    assert logged["bcr"].item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(logged["d_loss"].item() + expected, rel=1e-4)
    half = vitgan.discriminator_loss(D, real, fake, c, bcr_weight=0.5)[0]
    assert half.item() == pytest.approx(loss.item() - expected / 2, rel=1e-4)


@pytest.mark.parametrize("bcr, passes", [(10.0, 4), (0.0, 2)])
def test_all_passes_go_through_d_as_one_batch(vitgan, make_config, bcr, passes):
    D = StubD()
    config = make_config(bcr_real=bcr, bcr_fake=bcr)
    vitgan.discriminator_loss(D, constant(1.0, 2.0, 3.0), constant(0.0, 0.0, 0.0), config)
    assert D.batches == [passes * 3]


@pytest.mark.parametrize("logistic_on, g_calls, shown", [("augmented", [(2, "cutout", 0.3)], 7.0), ("plain", [], 0.0)])
def test_logistic_terms_judge_the_images_they_are_told_to(vitgan, make_config, monkeypatch, logistic_on, g_calls, shown):
    calls = []
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, *settings: calls.append((len(x), *settings)) or x + 7)
    c = make_config(augment="cutout", augment_p=0.3, logistic_on=logistic_on)
    _, logged = vitgan.discriminator_loss(StubD(), constant(1.0, 2.0), constant(0.0, 0.0), c)
    assert logged["logit_real"] == 1.5 + shown and logged["logit_fake"] == shown
    loss, _ = vitgan.generator_loss(StubD(), constant(0.0, 0.0), c)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-shown)))
    assert calls == [(4, "cutout", 0.3), *g_calls]


def test_plain_judging_without_bcr_needs_no_augmentation(vitgan, make_config, monkeypatch):
    monkeypatch.setattr(vitgan, "diff_augment", lambda *_: pytest.fail("nothing here looks at augmented images"))
    c = make_config(logistic_on="plain", bcr_real=0.0, bcr_fake=0.0)
    vitgan.discriminator_loss(StubD(), constant(1.0), constant(0.0), c)


def test_fakes_are_detached_and_numbers_too(vitgan, make_config):
    fake = constant(0.0, 1.0).clone().requires_grad_()
    D = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1), torch.nn.Flatten(0))
    loss, logged = vitgan.discriminator_loss(D, constant(1.0, 2.0), fake, make_config())
    loss.backward()
    assert fake.grad is None and loss.shape == () and not any(v.requires_grad for v in logged.values())
    vitgan.generator_loss(D, fake, make_config())[0].backward()
    assert fake.grad.abs().max() > 0


def test_r1_is_added_by_half_its_weight(vitgan, make_config):
    D, real, fake = vitgan.Discriminator(make_config()).eval(), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)

    def loss(r1):
        torch.manual_seed(0)
        return vitgan.discriminator_loss(D, real, fake, make_config(r1=r1))

    with_r1, logged = loss(3.0)
    assert logged["r1"] > 0
    torch.testing.assert_close(with_r1 - loss(0.0)[0], 1.5 * logged["r1"], rtol=1e-3, atol=1e-5)
    gradient = torch.autograd.grad(with_r1, D.embed.weight)[0]
    assert not torch.allclose(gradient, torch.autograd.grad(loss(0.0)[0], D.embed.weight)[0])


def test_lecam_pulls_each_side_to_the_running_mean_of_the_other(vitgan, make_config):
    D, c = StubD(), make_config(augment="", lecam=0.5, bcr_real=0.0, bcr_fake=0.0)
    D.logit_means.copy_(torch.tensor([1.0, -1.0]))
    real, fake = constant(2.0, 4.0), constant(0.0, -4.0)
    loss, logged = vitgan.discriminator_loss(D, real, fake, c)
    means = 0.99 * torch.tensor([1.0, -1.0]) + 0.01 * torch.tensor([3.0, -2.0])
    torch.testing.assert_close(D.logit_means, means)
    expected = sum((x - means[1]) ** 2 for x in (2, 4)) / 2 + sum((x - means[0]) ** 2 for x in (0, -4)) / 2
    torch.testing.assert_close(logged["lecam"], expected)
    torch.testing.assert_close(loss, logged["d_loss"] + 0.5 * expected)


# ------------------------------------------------------------------------------------------------------------- schedule


def test_warm_up_is_linear_in_images(vitgan, new_run, images):
    run, rates = new_run(warmup=16, batch_size=4, lr_g=0.01, lr_d=0.02), []
    for _ in range(6):
        vitgan.training_step(run, images)
        rates.append((run.opt_g.param_groups[0]["lr"], run.opt_d.param_groups[0]["lr"]))
    expected = [(0.01 * f, 0.02 * f) for f in (0.25, 0.5, 0.75, 1, 1, 1)]
    assert [r for pair in rates for r in pair] == pytest.approx([r for pair in expected for r in pair])


@pytest.mark.parametrize("ramp, expected", [(0, [1, 1, 1, 1, 1]), (12, [0, 1 / 3, 2 / 3, 1, 1])])
def test_bcr_ramp_grows_from_0_over_its_images(vitgan, new_run, images, monkeypatch, ramp, expected):
    weights, loss = [], vitgan.discriminator_loss

    def spy(D, real, fake, config, bcr_weight=1.0):
        weights.append(bcr_weight)
        return loss(D, real, fake, config, bcr_weight)

    monkeypatch.setattr(vitgan, "discriminator_loss", spy)
    run = new_run(bcr_ramp=ramp)
    for _ in range(5):
        vitgan.training_step(run, images)
    assert weights == pytest.approx(expected)


@pytest.mark.parametrize("option", [
    dict(r1=5.0), dict(lecam=0.5), dict(warmup=100), dict(bcr_ramp=100), dict(flip=False), dict(augment="cutout"),
    dict(bcr_real=0.0), dict(bcr_fake=0.0), dict(bcr_real=0.0, bcr_fake=0.0)])
def test_every_training_option_reaches_the_weights(train, option):
    plain, other = train("plain", total_images=16), train("other", total_images=16, **option)
    assert not torch.equal(plain.D.embed.weight, other.D.embed.weight)
    extra = {"r1", "lecam"} & set(option)
    assert extra <= set(other.history[-1]) and all(math.isfinite(other.history[-1][k]) for k in extra)


# ------------------------------------------------------------------------------------------------------------ the loop


def test_history_has_the_documented_numbers(train):
    run = train()
    assert [entry["images"] for entry in run.history] == [8, 16, 24] and run.images_seen == 24 and run.step == 6
    for entry in run.history:
        assert set(entry) == KEYS | {"swd"} and all(map(math.isfinite, entry.values()))
    seconds = [entry["seconds"] for entry in run.history]
    assert seconds == sorted(seconds) and 0 < seconds[0] and run.seconds == seconds[-1]


def test_history_averages_the_steps_since_the_last_entry(vitgan, train, monkeypatch):
    step, seen = vitgan.training_step, []
    monkeypatch.setattr(vitgan, "training_step", lambda run, images: seen.append(step(run, images)) or seen[-1])
    run = train()
    losses = [float(s["d_loss"]) for s in seen]
    assert [e["d_loss"] for e in run.history] == pytest.approx([(a + b) / 2 for a, b in zip(losses[::2], losses[1::2])])


def test_total_images_that_no_step_divides_are_reached(train):
    run = train(total_images=10, log_images=100)
    assert run.images_seen == 12 and [e["images"] for e in run.history] == [12] and "swd" in run.history[-1]


def test_snapshots_come_when_due_and_at_the_end(train):
    seen = []
    run = train(on_snapshot=lambda run, samples: seen.append((run.images_seen, samples)), snapshot_minutes=60.0)
    assert [n for n, _ in seen] == [24] and ["swd" in e for e in run.history] == [False, False, True]
    assert seen[0][1].shape == (64, 3, 8, 8) and seen[0][1].dtype == torch.uint8


def test_each_snapshot_leaves_a_png_and_a_checkpoint(train, tmp_path):
    steps = []
    train(on_snapshot=lambda run, _: steps.append(helpers.load_checkpoint(tmp_path / "checkpoint.pt")["step"]))
    assert steps == [2, 4, 6]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == ["000000008.png", "000000016.png", "000000024.png"]
    with Image.open(tmp_path / "samples" / names[-1]) as picture:
        picture.load()
        assert picture.size == (3 * (8 * 9 + 1),) * 2  # 8 columns of 8 pixels and a white line, 3 times enlarged


def test_max_minutes_stops_resumably(train):
    run = train(total_images=400, max_minutes=1e-9, snapshot_minutes=60.0)
    assert run.images_seen == 8 and "swd" in run.history[-1]
    again = train(total_images=16)
    assert again.images_seen == 16 and again.history[:1] == run.history


def test_snapshots_do_not_disturb_training(train):
    often, rarely = train("often", snapshot_minutes=0.0), train("rarely", snapshot_minutes=60.0)
    assert all(torch.equal(a, b) for a, b in zip(often.ema.parameters(), rarely.ema.parameters()))


def test_same_seed_same_weights_other_seed_other_weights(train):
    a, b, c = (train(folder, seed=seed, total_images=8).ema.decoder.out.linear.weight
               for folder, seed in [("a", 1), ("b", 1), ("c", 2)])
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_progress_shows_unless_quiet(vitgan, make_config, images, tmp_path, capfd):
    vitgan.train(make_config(total_images=8), images, tmp_path / "a", quiet=True)
    assert capfd.readouterr().err == ""
    vitgan.train(make_config(total_images=8), images, tmp_path / "b")
    assert "images" in capfd.readouterr().err


@pytest.mark.parametrize("shape, dtype", [
    ((4, 3, 8, 8), torch.float32), ((4, 3, 16, 16), torch.uint8), ((4, 8, 8, 3), torch.uint8), ((3, 8, 8), torch.uint8),
    ((0, 3, 8, 8), torch.uint8)])
def test_wrong_images_are_refused(vitgan, config, tmp_path, shape, dtype):
    wrong = torch.zeros(shape, dtype=dtype)
    with pytest.raises(vitgan.ConfigError, match=r"images is .*allowed: torch.uint8 \(n, 3, 8, 8\)"):
        vitgan.train(config, wrong, tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault
def test_losses_that_blow_up_stop_the_run_before_the_checkpoint_is_lost(train, tmp_path):
    train(total_images=8)
    with pytest.raises(FloatingPointError, match="_loss is not finite at step 3.*last good checkpoint from 8 images is whole in "
                                                 ".*half of lr_g and lr_d, precision='float32', a larger batch_size"):
        train(lr_g=1e30, lr_d=1e30)
    state = helpers.load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["G"].values())
    assert train(total_images=16).images_seen == 16, "with other settings it goes on from there"


@pytest.mark.fault
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("key, step", [("d_loss", 5), ("g_loss", 6), ("bcr", 5)])
def test_the_step_and_the_loss_that_broke_are_named(vitgan, train, monkeypatch, broken, key, step):
    honest = vitgan.training_step

    def poisoned(run, images):
        logged = honest(run, images)
        return logged | {key: torch.tensor(broken)} if run.step >= step else logged

    monkeypatch.setattr(vitgan, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match=f"^{key} is not finite at step {step}, so training stopped; the last good"):
        train(total_images=24)


@pytest.mark.fault
@pytest.mark.parametrize("network", ["G", "D"])
def test_weights_broken_by_the_last_step_are_not_saved(vitgan, train, tmp_path, monkeypatch, network):
    """The losses of a step are from before its update, so they cannot tell."""
    honest = vitgan.training_step

    def poisoned(run, images):
        logged = honest(run, images)
        if run.step == 4:
            next(getattr(run, network).parameters()).data.view(-1)[0] = math.nan
        return logged

    monkeypatch.setattr(vitgan, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match="^a weight is not finite at step 4, "):
        train(total_images=24)
    assert helpers.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2


@pytest.mark.fault
def test_losses_that_blow_up_before_any_checkpoint_say_so(train):
    with pytest.raises(FloatingPointError, match="no checkpoint had been written yet"):
        train(lr_g=1e30, lr_d=1e30, log_images=24)


@pytest.mark.parametrize("flip", [True, False])
def test_flip_is_the_settings_choice(vitgan, new_run, images, monkeypatch, flip):
    seen, draw = [], vitgan.sample_real
    monkeypatch.setattr(vitgan, "sample_real", lambda images, n, flip: seen.append(flip) or draw(images, n, flip))
    vitgan.training_step(new_run(flip=flip), images)
    assert seen == [flip]


def test_g_can_draw_given_pictures(vitgan, make_config, images):
    """Regression of 4 latents on 4 images: the error falls to a tenth of the images' variance in 150 steps."""
    c = make_config(width=32)
    G, target = vitgan.Generator(c), images[:4].float() / 127.5 - 1
    z, optimizer = torch.randn(4, c.latent_dim), torch.optim.Adam(G.parameters(), lr=0.005, betas=(0.0, 0.99))
    for _ in range(150):
        loss = F.mse_loss(G(z), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * target.var()


def test_d_learns_to_tell_stripes_from_noise(vitgan, new_run):
    """D's loss on easy data falls clearly below the 2 ln 2 of guessing, and its logits part."""
    run = new_run(batch_size=16, bcr_real=0.1, bcr_fake=0.1, augment="translation")
    stripes = (torch.arange(8) % 2 * 2 - 1.0).expand(16, 3, 8, 8)
    for _ in range(60):
        logged = vitgan.discriminator_step(run, stripes, torch.randn(16, 3, 8, 8).clamp(-1, 1))
    assert logged["d_loss"] < 0.9 and logged["logit_real"] - logged["logit_fake"] > 1


# ----------------------------------------------------------------------------------------------------------- precision


def precision(kind, wanted="auto"):
    return helpers.pick_precision(torch.device(kind), wanted)


def test_t4_takes_float16_although_it_emulates_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision("cuda") == (torch.float16, True)


def test_gpus_with_native_bfloat16_take_it_without_scaler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision("cuda") == (torch.bfloat16, False)


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_cpus_take_bfloat16_where_they_have_it(monkeypatch, native, dtype):
    monkeypatch.setattr(helpers, "cpu_has_bfloat16", lambda: native)
    assert precision("cpu") == (dtype, False)


@pytest.mark.parametrize("flags, native", [("avx512_bf16 sse", True), ("amx_bf16 amx_tile", True), ("avx512f", False)])
def test_cpu_flags_are_read(monkeypatch, flags, native):
    monkeypatch.setattr(helpers.Path, "read_text", lambda self: f"flags : {flags}\n")
    assert helpers.cpu_has_bfloat16() is native


def test_other_devices_and_missing_cpuinfo_mean_float32(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(helpers.Path, "read_text", missing)
    assert helpers.cpu_has_bfloat16() is False
    assert precision("mps") == (torch.float32, False)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_a_wanted_precision_is_taken(kind, wanted):
    assert precision(kind, wanted) == (getattr(torch, wanted), wanted == "float16" and kind == "cuda")


@pytest.mark.parametrize("wanted, dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_networks_compute_in_the_chosen_precision_and_losses_in_float32(vitgan, new_run, images, wanted, dtype):
    run, seen = new_run(precision=wanted), []
    run.D.blocks[0].mlp[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    logged = vitgan.training_step(run, images)
    assert set(seen) == {dtype} and {v.dtype for v in logged.values()} == {torch.float32}
    assert {p.dtype for n in (run.G, run.D, run.ema) for p in [*n.parameters(), *n.buffers()]} == {torch.float32}


def test_bfloat16_follows_float32(train):
    a, b = (train(precision, precision=precision) for precision in ("float32", "bfloat16"))
    assert b.history[0]["d_loss"] == pytest.approx(a.history[0]["d_loss"], abs=0.05)


def test_gradscaler_steps_and_updates_once_per_training_step(vitgan, new_run, images):
    """The float16 path without a GPU: a scaler on the CPU, in front of float32 networks, changes nothing."""
    plain, scaled = new_run(), new_run()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    for run in (plain, scaled):
        torch.manual_seed(0)
        for _ in range(3):
            vitgan.training_step(run, images)
    assert scaled.scaler.get_scale() == 16
    for a, b in zip(plain.G.parameters(), scaled.G.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_training_and_resuming_on_a_gpu(vitgan, make_config, images, tmp_path, wanted):
    for total in (24, 48):  # R1 differentiates attention twice, float16 goes through the scaler
        config = make_config(precision=wanted, total_images=total, r1=0.1)
        run = vitgan.train(config, images.cuda(), tmp_path, quiet=True)
    assert run.ema.w_mean.is_cuda and run.images_seen == 48 and run.scaler.is_enabled() is (wanted == "float16")
    assert [e["images"] for e in run.history] == [8, 16, 24, 32, 40, 48]
