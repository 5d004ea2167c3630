"""The two losses, one training step, and the loop around it."""

import dataclasses
import functools
import shutil

import pytest
import reference
import torch
from conftest import ROOT, tiny_images

import helpers


def assert_same(a, b):
    """Equal to the last bit, however nested."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_losses_and_their_gradients_are_those_written_out(vitgan, monkeypatch):
    """Goodfellow's, of augmented images; bCR compares each image with its own augmentation."""
    shifts, slope = torch.rand(4, 1, 1, 1) / 6, torch.tensor(1.5, requires_grad=True)
    monkeypatch.setattr(
        vitgan, "diff_augment", lambda x, policy: x + shifts[: len(x)] * len(policy)
    )

    def D(x):
        return slope * x.mean((1, 2, 3))

    real, fake = torch.randn(2, 2, 3, 8, 8)
    logit_real, logit_fake = D(real + 6 * shifts[:2]), D(fake + 6 * shifts[2:])
    logistic = -(logit_real.sigmoid().log() + (1 - logit_fake.sigmoid()).log()).mean()
    moved = (logit_real - D(real)).square().mean() + (logit_fake - D(fake)).square().mean()
    loss, stats = vitgan.discriminator_loss(D, real, fake, "cutout", 10.0)
    torch.testing.assert_close(
        stats,
        {
            "d_loss": logistic.detach(),
            "consistency": 10 * moved.detach(),
            "logit_real": logit_real.mean().detach(),
            "logit_fake": logit_fake.mean().detach(),
        },
    )
    loss_G, stats_G = vitgan.generator_loss(D, real, fake, "cutout")
    expected_G = -D(fake + 6 * shifts[:2]).sigmoid().log().mean()
    assert stats_G["g_loss"] == loss_G
    for found, expected in ((loss, logistic + 10 * moved), (loss_G, expected_G)):
        torch.testing.assert_close(found, expected)
        slopes = (torch.autograd.grad(x, slope, retain_graph=True) for x in (found, expected))
        torch.testing.assert_close(*slopes)


@pytest.mark.filterwarnings("error:left out")
@pytest.mark.parametrize(
    "precision, tolerance, compile",
    [  # of losses, of gradients' direction
        ("float32", 1e-4, False),
        ("float16", 0.01, False),
        ("bfloat16", 0.05, False),
        pytest.param(
            "float32",
            1e-4,
            True,
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="no compiler"),
        ),
    ],
)
def test_train_step_in_each_format_follows_literal_float32_on_the_cpu(
    vitgan, make_config, images, device, monkeypatch, precision, tolerance, compile
):
    """Losses within the tolerance, relative above 1; the gradients of G and of D, a vector each,
    within it of the literal ones' length. Rates are 0, since Adam's step is mostly a sign.
    The CPU runs compiled graphs as they are, since its compiler would take minutes."""
    for draw in (torch.rand, torch.randn, torch.randint):  # all devices draw the CPU's numbers
        monkeypatch.setattr(
            torch,
            draw.__name__,
            lambda *sizes, device="cpu", draw=draw, **rest: draw(*sizes, **rest).to(device),
        )
    if device.type == "cpu":
        graphs = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
        monkeypatch.setattr(torch.nn.Module, "compile", graphs)
    still = dict(depth=2, lr_g=0.0, lr_d=0.0, bcr=1.0, batch_size=16)
    state = vitgan.TrainState(make_config(precision=precision, compile=compile, **still), device)
    assert (state.D._compiled_call_impl is not None) == compile
    literal = vitgan.TrainState(make_config(**still), torch.device("cpu"))
    assert_same({k: v.cpu() for k, v in state.D.state_dict().items()}, literal.D.state_dict())
    for network in (literal.G, literal.D):
        reference.make_literal(network)
    found = []
    for trained, pictures in ((state, images), (literal, images.cpu())):
        torch.manual_seed(1)
        with torch.no_grad(), trained.autocast():
            logits = trained.D(torch.zeros(2, 3, 8, 8, device=pictures.device))
        assert logits.dtype == getattr(torch, trained.config.precision)
        found.append(vitgan.train_step(trained, pictures))
    for name, exact in found[1].items():
        assert found[0][name].item() == pytest.approx(exact.item(), rel=tolerance, abs=tolerance)
    for network, expected in ((state.G, literal.G), (state.D, literal.D)):
        a, b = (
            torch.cat([p.grad.cpu().flatten() for p in net.parameters()])
            for net in (network, expected)
        )
        assert b.norm() > 0 and (a - b).norm() < tolerance * b.norm()
    vitgan.train_step(state, images)  # the scaler, too, must be ready for a second one


def test_train_goes_on_to_the_same_bits_and_saves_at_the_end(train, tmp_path):
    """On the device, in the format whose scaler has a state, too."""
    whole = train(precision="float16")
    saved = [(entry["images"], "swd" in entry) for entry in whole.history]
    assert saved == [(8, False), (16, False), (24, True)]
    assert [path.name for path in (tmp_path / "run").glob("*.png")] == ["samples-000000024.png"]
    for total in (8, 16, 24):
        parts = train("parts", total_images=total, precision="float16")
    for name in ("G", "D", "G_ema", "opt_G", "opt_D", "scaler"):
        assert_same(getattr(parts, name).state_dict(), getattr(whole, name).state_dict())
    assert [e["d_loss"] for e in parts.history] == [e["d_loss"] for e in whole.history]


def test_snapshots_come_eight_times_a_run_and_first_after_a_minute(make_config, vitgan, tmp_path):
    for minutes, interval, first in ((12.5, 93.75, 60), (0.8, 6, 6), (1000, 600, 60)):
        state = vitgan.TrainState(make_config(max_minutes=minutes), torch.device("cpu"))
        run = helpers.Run(state, tmp_path, {})
        run.lock.release()
        assert (run.interval, run.snapshot_at) == (interval, first)


def test_train_stops_after_max_minutes_and_goes_on_with_more(train, monkeypatch):
    assert train(total_images=400, max_minutes=1e-9).images_seen == 8
    assert train(total_images=16).images_seen == 16
    monkeypatch.setattr(helpers.time, "monotonic", iter(range(0, 9999, 30)).__next__)  # slow steps
    assert train("slow", total_images=400, max_minutes=0.4).images_seen == 4


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_takes_bfloat16_only_where_a_gpu_has_it(monkeypatch, native, dtype):
    """A T4 only emulates it."""
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    assert helpers.number_format(torch.device("cuda")) == dtype


def test_float16_has_a_scaler(make_config, vitgan):
    for precision in ("float16", "bfloat16", "float32"):
        state = vitgan.TrainState(make_config(precision=precision), torch.device("cpu"))
        assert state.scaler.is_enabled() == (precision == "float16")


def test_100_steps_are_those_of_a_literal_loop_to_the_last_bit(vitgan, tmp_path):
    """At once, and after a stop half-way. The literal loop runs here, since the last bits differ
    between kinds of machines; a small half-life is reached, digits are mirrored, too."""
    data, cpu = helpers.load_images(16, "digits"), torch.device("cpu")
    chosen = dict(precision="float32", flip=True, ema_half_life=40, lr_d=0.002, seed=3)
    config = vitgan.configure(data, cpu, "smoke", **chosen)[1]
    G, D, average, losses = reference.training_loop(config, data.pixels, 100, vitgan)
    halves = [sum(d for d, _ in half) / 50 for half in (losses[:50], losses[50:])]
    for folder, totals in (("at once", [1600]), ("in two", [800, 1600])):
        for total in totals:
            c = dataclasses.replace(config, total_images=total)
            state = vitgan.train(c, data.pixels, tmp_path / folder)
        for network, literal in ((state.G, G), (state.D, D), (state.G_ema, average)):
            assert_same(network.state_dict(), literal.state_dict())
        loss_D = [entry["d_loss"] + entry["consistency"] for entry in state.history]
        assert loss_D == pytest.approx(halves, rel=1e-4)


def test_distances_see_sets_and_agree_with_the_shipped_card(vitgan):
    x = tiny_images()
    assert vitgan.sliced_wasserstein(x, x.flip(0)) < 1e-3 < vitgan.sliced_wasserstein(x, 255 - x)
    gray = torch.full((8, 3, 8, 8), 100, dtype=torch.uint8)
    assert vitgan.sliced_wasserstein(gray, gray + 10) == pytest.approx(10, rel=0.05)
    G, model, card = vitgan.load_generator(ROOT / "assets" / "vitgan-32.safetensors")
    one, other = (vitgan.fixed_noise(model, 1000, seed) for seed in (1, 2))
    assert not torch.equal(one, other) and not torch.equal(vitgan.fixed_subset(x, 8), x[:8])
    features = vitgan.features(vitgan.sample(G, one))
    assert vitgan.cfd(features) == pytest.approx(card["cFD"], rel=0.1)
