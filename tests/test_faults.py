"""What a user may rely on when something goes wrong: each fault is survived with nothing lost, or told in one sentence."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from test_training import RESUMED, assert_same

import helpers


@pytest.fixture
def at_step(vitgan, monkeypatch):
    """Do something to the state after the n-th training step from now."""
    def prepare(n, act):
        honest, steps = vitgan.train_step, []

        def train_step(state, images):
            stats = honest(state, images)
            steps.append(stats)
            if len(steps) == n:
                act(state)
            return stats

        monkeypatch.setattr(vitgan, "train_step", train_step)

    return prepare


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


def test_train_that_meets_nan_stops_with_the_last_good_checkpoint_whole(train, at_step, tmp_path):
    def poison(state):
        next(state.D.parameters()).data.view(-1)[0] = torch.nan

    at_step(4, poison)
    with pytest.raises(FloatingPointError, match=r"weights not finite after 16 images.*precision='float32'.*half of lr_g and lr_d"):
        train()
    saved = helpers.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["images_seen"] == 8 and all(t.isfinite().all() for n in ("G", "D", "G_ema") for t in saved[n].values())


@pytest.mark.parametrize("when", ["step", "snapshot"])
def test_train_interrupted_once_saves_returns_and_goes_on_as_if_nothing_had_been(train, at_step, monkeypatch, when):
    if when == "step":
        at_step(3, interrupt)
        stopped = train(snapshot_minutes=60.0)
    else:
        stopped = train(on_snapshot=interrupt)
    assert stopped.images_seen == {"step": 12, "snapshot": 8}[when]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    again, through = train().state_dict(), train("through").state_dict()
    for part in RESUMED:
        assert_same(again[part], through[part])


def test_train_interrupted_twice_ends_at_once_and_frees_the_folder(train, at_step, monkeypatch):
    at_step(3, lambda state: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.undo()
    assert train().images_seen == 24


def test_train_goes_on_when_the_disk_refuses_and_saves_when_there_is_room(train, monkeypatch, tmp_path):
    save, refused = torch.save, []

    def refuse_twice(*args):
        if len(refused) < 2:
            refused.append(args)
            raise OSError(28, "No space left on device")
        return save(*args)

    monkeypatch.setattr(torch, "save", refuse_twice)
    with pytest.warns(UserWarning, match="not saved .*No space left.*training goes on"):
        assert train().images_seen == 24
    assert helpers.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["images_seen"] == 24


def test_train_refuses_a_folder_in_use(train, tmp_path):
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(RuntimeError, match="run_dir=.* is in use by another training"):
        train("")
    assert train("").images_seen == 24


def test_train_killed_while_saving_goes_on_from_the_checkpoint_before(train, tmp_path):
    script = f"""if True:
        import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import os, signal, torch, conftest, helpers
        vitgan, save, calls = helpers.load_definitions(conftest.NOTEBOOK), torch.save, []
        def die(state, path):
            calls.append(path)
            if len(calls) == 3:
                open(path, "wb").write(b"half a checkpoint")
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, path)
        torch.save = die
        vitgan.train(vitgan.Config.profile("smoke", **conftest.TINY), conftest.tiny_images(), "run")"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert helpers.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["images_seen"] == 16
    again, through = train().state_dict(), train("through").state_dict()
    for part in RESUMED:
        assert_same(again[part], through[part])


def test_load_checkpoint_falls_back_to_the_one_before_and_says_so(train, tmp_path):
    train()
    newest, before = (tmp_path / "run" / name for name in ("checkpoint.pt", "checkpoint.previous.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="checkpoint.pt cannot be read"):
        assert helpers.load_checkpoint(newest)["images_seen"] == 16
    before.write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(RuntimeError, match="no readable checkpoint in .*delete"):
        train()


def test_train_refuses_a_checkpoint_of_other_settings_or_other_images(vitgan, train, config, images, tmp_path):
    train(total_images=8)
    with pytest.raises(ValueError, match=r"another run: width=32 \(there: 16\)\. Choose another run_dir"):
        train(width=32)
    with pytest.raises(ValueError, match="another run: other images"):
        vitgan.train(config, 255 - images, tmp_path / "run")


def test_train_out_of_memory_says_what_to_lower(train, at_step, tmp_path):
    def full(state):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    at_step(3, full)
    with pytest.raises(torch.OutOfMemoryError, match="^lower batch_size=4: CUDA out of memory"):
        train()
    assert helpers.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["images_seen"] == 8


def test_train_goes_on_uncompiled_when_compiling_fails(train, monkeypatch):
    compile, tried = torch.nn.Module.compile, []

    def no_compiler(graph, inputs):
        tried.append(graph)
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)  # put back afterwards
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile(self, backend=no_compiler, **options))
    assert train(compile=True, total_images=8).images_seen == 8 and tried


def test_train_refuses_a_batch_that_processes_cannot_share(train, monkeypatch):
    monkeypatch.setattr(helpers, "rank_and_size", lambda: (0, 3))
    with pytest.raises(ValueError, match="batch_size=4; allowed: a multiple of the 3 processes"):
        train()


def test_load_generator_reads_what_save_generator_wrote_and_refuses_the_rest(vitgan, config, tmp_path):
    G, path, z = vitgan.Generator(config).eval(), tmp_path / "g.safetensors", vitgan.fixed_noise(config, 4)
    vitgan.save_generator(path, G, config, {"data": "noise"})
    loaded, its_config, card = vitgan.load_generator(path)
    torch.testing.assert_close(loaded(z), G(z), atol=0.02, rtol=0.02)
    assert its_config == config and card == {"data": "noise"} and not loaded.training
    about = json.dumps({"config": {**vars(config), "width": 24}, "card": {}})
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "other.safetensors", metadata={"about": about})
    (tmp_path / "text.safetensors").write_bytes(b"not weights")
    for name in ("foreign", "other", "text"):
        with pytest.raises(ValueError, match="holds no generator of this notebook"):
            vitgan.load_generator(tmp_path / f"{name}.safetensors")


def test_sample_refuses_latents_of_another_width(vitgan, config):
    with pytest.raises(ValueError, match=r"latents of shape \(4, 9\); expected \(n, 8\)"):
        vitgan.sample(vitgan.Generator(config).eval(), torch.randn(4, 9))


def test_run_folder_belongs_to_one_run(vitgan, make_config, images, tmp_path):
    """Other settings get another name, other images of the same name a number, the same run its folder again."""
    data, config = helpers.Images(images, "my cats"), make_config(total_images=8)
    folder = lambda c, d: vitgan.run_folder("smoke", c, d, tmp_path)  # noqa: E731
    first = folder(config, data)
    vitgan.train(config, images, first)
    assert folder(config, data) == folder(make_config(total_images=99), data) == first and first.name.startswith("smoke-my-cats")
    assert "-lr_g=0.5" in folder(make_config(lr_g=0.5), data).name
    assert folder(config, helpers.Images(255 - images, "my cats")) == Path(f"{first}-2")
