"""What a user may rely on when something goes wrong, each fault made by its real mechanism."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

import helpers

PRELUDE = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import os, resource, signal, torch, conftest, helpers
vitgan = helpers.load_definitions()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup this
images, device = conftest.tiny_images(), torch.device("cpu")
data = helpers.Images(images, "tiny")

def train(folder="run", snapshot_seconds=0, **settings):
    config = vitgan.configure(data, device, "smoke", **conftest.TINY | settings)[1]
    return vitgan.train(config, images, folder, log_steps=2, snapshot_seconds=snapshot_seconds)

def at_loss(number, act):
    '''From now on the loss of G, the given one of a run, does something first.'''
    honest, calls = vitgan.generator_loss, []
    def generator_loss(*args):
        calls.append(1)
        if len(calls) == number:
            act()
        return honest(*args)
    vitgan.generator_loss = generator_loss
"""


def python(script, folder, **environment):
    """Run a script after PRELUDE in a process of its own."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=200
    )


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def images_seen(folder):
    return checkpoint(folder)["state"]["images_seen"]


def test_a_full_disk_costs_a_warning_and_the_weights_stay_in_memory(tmp_path):
    script = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        state = train()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        vitgan.save_run("w.safetensors", state, {"data": "noise"})
        """
    done = python(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out: a checkpoint, the next one tries again (" in done.stderr
    assert not [*(tmp_path / "run").glob("checkpoint*")]  # no half a file fills the disk
    assert (tmp_path / "w.safetensors").exists()


def test_a_process_killed_while_saving_goes_on_from_the_checkpoint_before(tmp_path):
    script = """
        save, calls = torch.save, []
        def die(saved, path):
            calls.append(path)
            if len(calls) == 2:
                open(path, "wb").write(b"half a checkpoint")
                os.kill(os.getpid(), signal.SIGKILL)
            save(saved, path)
        torch.save = die
        train()
        """
    killed = python(script, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    seen = images_seen(tmp_path / "run")
    again = python("train()", tmp_path)
    assert f"run has seen {seen} images; going on from there" in again.stdout
    assert images_seen(tmp_path / "run") == 24 > seen


@pytest.mark.parametrize("name, presses", [("INT", 1), ("INT", 2), ("TERM", 1), ("HUP", 1)])
def test_a_signal_ends_training_after_the_step_and_it_goes_on_bit_for_bit(tmp_path, name, presses):
    """It comes in the middle of a step, when D has learned and G has not; a second ends at once."""
    script = f"""
        at_loss(3, lambda: [os.kill(os.getpid(), signal.SIG{name}) for _ in range({presses})])
        try:
            print(train(snapshot_seconds=1000).images_seen)
        except KeyboardInterrupt:
            print("at once")
        state, through = train(), train("through")
        for part in ("G", "D", "G_ema", "opt_G"):
            pairs = (getattr(s, part).state_dict() for s in (state, through))
            torch.testing.assert_close(*pairs, rtol=0, atol=0)
        """
    done = python(script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("\n12\n", "at once\n")[presses - 1] in done.stdout


def test_an_ignored_hangup_ends_nothing(tmp_path):
    """nohup ignores it."""
    script = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        at_loss(3, lambda: os.kill(os.getpid(), signal.SIGHUP))
        print(train().images_seen)
        """
    assert python(script, tmp_path).stdout.endswith("24\n")


@pytest.mark.parametrize("broken", ["weight", "scale"])
def test_what_is_not_finite_ends_training_and_is_never_saved(tmp_path, broken):
    """A NaN in a weight, and a float16 loss scale that falls below 1, as it does when all gradients
    overflow."""
    act = {
        "weight": "next(state.D.parameters()).data.view(-1)[0] = torch.nan",
        "scale": "state.scaler = torch.amp.GradScaler('cpu', init_scale=0.5)",
    }[broken]
    script = f"""
        honest, steps = vitgan.train_step, []
        def train_step(state, images):
            losses = honest(state, images)
            steps.append(losses)
            if len(steps) == 4:
                {act}
            return losses
        vitgan.train_step = train_step
        train()
        """
    done = python(script, tmp_path)
    assert "FloatingPointError: not finite" in done.stderr and "precision=float32" in done.stderr
    saved = checkpoint(tmp_path / "run")["state"]
    assert saved["images_seen"] == 8
    assert all(t.isfinite().all() for name in ("G", "D", "G_ema") for t in saved[name].values())


def test_out_of_memory_is_a_sentence_that_names_the_batch_size(tmp_path):
    done = python("at_loss(3, lambda: torch.empty(10**15))\ntrain()", tmp_path)
    assert "MemoryError: out of memory with batch_size=4; try half of it" in done.stderr


def test_a_termination_ends_the_command_as_ctrl_c_does(tmp_path):
    words = ["profile=smoke", "data_dir=digits", "image_size=16", "total_images=9999999"]
    environment = {**os.environ, "VITGAN_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, ROOT / "helpers.py", *words],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
    ) as process:
        next(line for line in process.stderr if "images/s" in line)  # of the progress bar
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0 and [*tmp_path.glob("*/weights.safetensors")]


def test_the_second_process_in_a_folder_is_told_so_and_changes_nothing(train, tmp_path):
    lock = helpers.FileLock(tmp_path / "run" / "run.lock")
    (tmp_path / "run").mkdir()
    with lock, pytest.raises(helpers.RunError, match="another process trains in .*run; wait"):
        train()
    assert train().images_seen == 24


def test_without_locks_training_goes_on(train, monkeypatch):
    def no_locks(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(helpers.FileLock, "acquire", no_locks)
    assert train().images_seen == 24


@pytest.mark.parametrize(
    "damage, cause",
    [
        (lambda path: None, r"holds a run with width=16 \(now 32\); choose"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read .*RuntimeError"),
        (lambda path: path.write_bytes(b""), "cannot be read .*EOFError"),
        (lambda path: path.write_bytes(b"text"), "cannot be read .*IndexError"),
        (
            lambda path: shutil.rmtree(path.parent) or path.parent.write_bytes(b""),
            "cannot hold a run",
        ),
    ],
)
def test_a_folder_that_cannot_hold_the_run_is_a_sentence(train, tmp_path, damage, cause):
    train(total_images=8)
    damage(tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(helpers.RunError, match=rf"(?s)run.* {cause}"):
        train(width=32)


def test_runs_that_cannot_be_written_name_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITGAN_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file cannot hold runs .*; VITGAN_RUNS names another"):
        helpers.runs_root()


def test_other_code_in_a_chosen_folder_is_said(train, tmp_path, capsys):
    train(total_images=8)
    saved = checkpoint(tmp_path / "run")
    saved["code"]["mlp"] = "0"
    torch.save(saved, tmp_path / "run" / "checkpoint.pt")
    assert train().images_seen == 24
    assert "It goes on with changed code: mlp." in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["the compiler", "a class"])
def test_what_cannot_be_compiled_trains_uncompiled_with_the_same_numbers(tmp_path, broken):
    """A class that the compiler refuses, in the backward pass of the second network, say."""
    script = """
        def refuse(graph, inputs):
            raise RuntimeError("no such class\\nand much more")
        if os.environ.get("CXX") is None:
            compile = torch.nn.Module.compile
            torch.nn.Module.compile = lambda *args, **rest: compile(*args, backend=refuse, **rest)
        states = train("compiled", compile=True), train()
        pairs = (torch.cat([p.flatten() for p in s.G.parameters()]) for s in states)
        torch.testing.assert_close(*pairs, rtol=0, atol=0)
        print(states[0].images_seen)
        """
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    compiler = {"CXX": "/nowhere/g++"} if broken == "the compiler" else {}
    done = python(script, tmp_path, **cache, **compiler)
    assert done.stdout.strip().endswith("24"), done.stderr[-2000:]
    assert done.stderr.count("left out: torch.compile (") == 1
    assert "compiling the networks, a minute or two" in done.stdout


def test_an_error_of_ones_own_is_not_taken_for_the_compiler(train, vitgan, monkeypatch):
    def typo(*_):
        raise NameError("sampels")

    graphs = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", graphs)
    monkeypatch.setattr(vitgan, "generator_loss", typo)
    with pytest.raises(NameError), pytest.warns(UserWarning, match="torch.compile"):
        train(compile=True)


def test_training_works_off_the_main_thread(train):
    states = []
    thread = threading.Thread(target=lambda: states.append(train()))
    thread.start()
    thread.join(120)
    assert states[0].images_seen == 24


def test_a_pipe_that_nobody_reads_does_not_keep_the_command_alive(tmp_path):
    words = "profile=smoke data_dir=digits image_size=16 total_images=320"
    command = f"{sys.executable} {ROOT / 'helpers.py'} {words} 2>&1 | head -1"
    environment = {**os.environ, "VITGAN_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", command], env=environment, timeout=100, capture_output=True)
    (folder,) = tmp_path.iterdir()
    assert images_seen(folder) == 320


def test_a_state_that_could_not_be_read_again_is_refused_when_it_is_saved(vitgan, train, tmp_path):
    class State(vitgan.TrainState):
        def __init__(self, config, device):
            super().__init__(config, device)
            self.mine = [State]

    before = vitgan.TrainState
    vitgan.TrainState = State
    try:
        with pytest.raises(Exception, match="pickle|local object|weights_only|Weights only"):
            train()
    finally:
        vitgan.TrainState = before
    assert not [*(tmp_path / "run").glob("checkpoint*")]


def test_weights_are_read_as_saved_start_a_run_or_say_why_not(vitgan, make_config, train, tmp_path):
    state, path = train(patch_size_g=8), tmp_path / "w.safetensors"
    vitgan.save_run(path, state, {"data": "noise"})
    G, model, card = vitgan.load_generator(path)
    z = vitgan.fixed_noise(model, 4)
    torch.testing.assert_close(G(z), state.G_ema(z.to(state.device)).cpu(), atol=0.02, rtol=0.02)
    assert vars(model).items() <= vars(state.config).items() and type(model) is vitgan.Model
    assert card["data"] == "noise" and card["images seen"] == 24 and not G.training
    again = vitgan.TrainState(make_config(patch_size_g=8, start_from=str(path)), state.device)
    for name in ("G", "D", "G_ema"):
        a, b = (getattr(part, name).state_dict() for part in (again, state))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with pytest.raises(helpers.RunError, match="fit this G: .* more. It has .* width=16 "):
        train("other", start_from=str(path), width=32)
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"not weights")
    for name in ("foreign", "text", "missing"):
        with pytest.raises(ValueError, match="is no file by save_weights"):
            vitgan.load_generator(tmp_path / f"{name}.safetensors")
