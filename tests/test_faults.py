"""What a user may rely on when something goes wrong, each fault made by its real mechanism."""
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

import helpers

PRELUDE = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import os, resource, signal, torch, conftest, helpers
vitgan = helpers.load_definitions()
helpers.LOG_STEPS = 2
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
images, device = conftest.tiny_images(), torch.device("cpu")
data = helpers.Images(images, "tiny", {{}})
config = vitgan.configure(data, device, "smoke", **conftest.TINY)[1]
"""

def python(script, folder, **environment):
    """Run a script after PRELUDE in a process of its own."""
    return subprocess.run([sys.executable, "-c", PRELUDE + textwrap.dedent(script)], cwd=folder,
                          env={**os.environ, **environment}, text=True, capture_output=True,
                          timeout=200)

def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)

def test_a_full_disk_costs_a_warning_and_the_weights_stay_in_memory(tmp_path):
    done = python("""
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        state = vitgan.train(config, images, "run")
        with helpers.optional("the weights; save_generator writes them elsewhere"):
            vitgan.save_generator("run/g.safetensors", state.G_ema, config, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        vitgan.save_generator("g.safetensors", state.G_ema, config, {"seen": state.images_seen})
        """, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out: a snapshot, the next one tries again (" in done.stderr
    assert not [*(tmp_path / "run").glob("checkpoint*")]  # no half a file fills the disk
    assert (tmp_path / "g.safetensors").exists()

def test_a_process_killed_while_saving_goes_on_from_the_checkpoint_before(tmp_path):
    killed = python("""
        save, calls = torch.save, []
        def die(saved, path):
            calls.append(path)
            if len(calls) == 2:
                open(path, "wb").write(b"half a checkpoint")
                os.kill(os.getpid(), signal.SIGKILL)
            save(saved, path)
        torch.save, helpers.Run.interval = die, property(lambda self: 0, lambda self, value: None)
        vitgan.train(config, images, "run")
        """, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    seen = checkpoint(tmp_path / "run")["images_seen"]
    again = python("vitgan.train(config, images, 'run')", tmp_path)
    assert f"run has seen {seen} images; going on from there" in again.stdout
    assert checkpoint(tmp_path / "run")["images_seen"] == 24 > seen

@pytest.mark.parametrize("presses", [1, 2])
def test_the_stop_button_ends_after_the_step_and_the_run_goes_on_bit_for_bit(tmp_path, presses):
    """Pressed in the middle of a step, when D has learned and G has not; a second press ends it."""
    done = python(f"""
        honest, calls = vitgan.generator_loss, []
        def generator_loss(*args):
            calls.append(1)
            for _ in range({presses} if len(calls) == 3 else 0):
                os.kill(os.getpid(), signal.SIGINT)
            return honest(*args)
        vitgan.generator_loss = generator_loss
        helpers.Run.interval = property(lambda self: 0, lambda self, value: None)
        try:
            print(vitgan.train(config, images, "run").images_seen)
        except KeyboardInterrupt:
            print("at once")
        state, through = (vitgan.train(config, images, name) for name in ("run", "through"))
        for a, b in zip([*state.G.parameters(), *state.G_ema.parameters(), *state.D.parameters()],
                        [*through.G.parameters(), *through.G_ema.parameters(),
                         *through.D.parameters()]):
            assert torch.equal(a, b)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        """, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("\n12\n", "\nat once\n")[presses - 1] in done.stdout

@pytest.mark.parametrize("broken", ["weight", "scale"])
def test_what_is_not_finite_ends_training_and_is_never_saved(tmp_path, broken):
    """A NaN in a weight, and a float16 loss scale that falls below 1, as it does when all gradients
    overflow."""
    act = {"weight": "next(state.D.parameters()).data.view(-1)[0] = torch.nan",
           "scale": "state.scaler = torch.amp.GradScaler('cpu', init_scale=0.5)"}[broken]
    done = python(f"""
        honest, steps = vitgan.train_step, []
        def train_step(state, images):
            losses = honest(state, images)
            steps.append(losses)
            if len(steps) == 4:
                {act}
            return losses
        vitgan.train_step = train_step
        helpers.Run.interval = property(lambda self: 0, lambda self, value: None)
        vitgan.train(config, images, "run")
        """, tmp_path)
    assert "FloatingPointError: not finite" in done.stderr and "precision=float32" in done.stderr
    saved = checkpoint(tmp_path / "run")
    assert saved["images_seen"] == 8
    assert all(t.isfinite().all() for name in ("G", "D", "G_ema") for t in saved[name].values())

def test_a_termination_ends_the_command_as_ctrl_c_does(tmp_path):
    words = ["profile=smoke", "data_dir=digits", "total_images=9999999"]
    with subprocess.Popen([sys.executable, ROOT / "helpers.py", *words], text=True,
                          stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          env={**os.environ, "VITGAN_RUNS": str(tmp_path)}) as process:
        next(line for line in process.stderr if "images/s" in line)  # of the progress bar
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0 and [*tmp_path.glob("*/generator.safetensors")]

def rename_a_setting(path):
    saved = torch.load(path, weights_only=True)
    saved["config"]["learning_rate"] = saved["config"].pop("lr_g")
    torch.save(saved, path)

@pytest.mark.parametrize("damage, cause", [
    (lambda path: None, r"it holds a run with width=16 \(now 32\)"),
    (rename_a_setting, r"learning_rate=0.0\d+ \(now None\), lr_g=None \(now 0.0"),
    (lambda path: path.write_bytes(path.read_bytes()[:1000]), "RuntimeError"),
    (lambda path: path.write_bytes(b""), "EOFError"),
    (lambda path: shutil.rmtree(path.parent) or path.parent.write_bytes(b""), "FileExistsError")])
def test_a_folder_that_cannot_hold_the_run_is_a_sentence(train, tmp_path, damage, cause):
    train(total_images=8)
    damage(tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"(?s)run cannot hold this run .*{cause}.*move it"):
        train(width=32)

def test_a_run_with_other_settings_names_the_runs_that_are_there(train, capsys):
    train(total_images=8, folder="one")
    assert " is new" not in capsys.readouterr().out
    train(total_images=8, folder="two", width=32)
    assert "two is new; runs with other settings or data: one" in capsys.readouterr().out

def test_a_run_does_not_depend_on_pixels_or_on_its_length(vitgan, make_config, images, tmp_path):
    vitgan.train(make_config(total_images=8), images, tmp_path / "run")
    other_decoder = images ^ 1
    state = vitgan.train(make_config(total_images=16), other_decoder, tmp_path / "run")
    assert [entry["images"] for entry in state.history] == [8, 16]
    cats = [helpers.Images(images, "train", {}, f"/{pet}/train") for pet in ("cats", "dogs")]
    runs = [(0, {}), (0, {"total_images": 99}), (0, {"compile": True}), (0, {"seed": 9}), (1, {})]
    folders = [helpers.run_folder("runs", "cpu", cats[i], make_config(**changed))
               for i, changed in runs]
    assert folders[0] == folders[1] == folders[2] and len(set(folders)) == 3

def test_without_a_compiler_training_goes_on_uncompiled(tmp_path):
    done = python("print(vitgan.train(vitgan.configure(data, device, 'smoke', **conftest.TINY | "
                  "{'compile': True})[1], images, 'run').images_seen)", tmp_path,
                  CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout.strip().endswith("24"), done.stderr[-2000:]
    assert done.stderr.count("left out: torch.compile, training goes on without it") == 1

def test_training_works_off_the_main_thread(train):
    states = []
    thread = threading.Thread(target=lambda: states.append(train()))
    thread.start()
    thread.join(120)
    assert states[0].images_seen == 24

def test_a_console_that_cannot_print_a_character_does_not_end_a_run(tmp_path):
    (tmp_path / "größe").mkdir()
    for name in "ab":
        Image.new("RGB", (12, 12)).save(tmp_path / "größe" / f"{name}.png")
    words = [sys.executable, ROOT / "helpers.py", "data_dir=größe", "image_size=12"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 1 and b"image_size=12 must be" in done.stderr

@pytest.mark.parametrize("part", ["console", "samples"])
def test_what_fails_beside_training_does_not_end_it(train, vitgan, monkeypatch, tmp_path, part):
    """The log and the progress bar of a closed console; samples that memory cannot hold."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = open(writer, "w")
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="left out: .*snapshot"):
        if part == "samples":
            patch.setattr(vitgan, "sample", lambda *_: torch.empty(10**15))
        else:
            patch.setattr("sys.stdout", closed)
            patch.setattr("sys.stderr", closed)
        train()
    with suppress(BrokenPipeError):
        closed.close()
    assert checkpoint(tmp_path / "run")["images_seen"] == 24

def test_a_server_out_of_reach_costs_cifar10_and_no_more(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(helpers.CIFAR10, "url", "http://127.0.0.1:9/c.gz")  # nobody answers
    with pytest.warns(UserWarning, match="left out: CIFAR-10, digits take its place"):
        pixels, name, *_ = helpers.load_images(8)
    assert name == "digits" and pixels.max() == 255

def test_load_generator_reads_what_was_saved_and_refuses_the_rest(vitgan, make_config, tmp_path):
    config = make_config(patch_size=8)
    G, path = vitgan.Generator(config).eval(), tmp_path / "g.safetensors"
    vitgan.save_generator(path, G, config, {"data": "noise"})
    loaded, model, card = vitgan.load_generator(path)
    z = vitgan.fixed_noise(config, 4)
    torch.testing.assert_close(loaded(z), G(z), atol=0.02, rtol=0.02)
    assert vars(model).items() <= vars(config).items() and type(model) is vitgan.Model
    assert card == {"data": "noise"} and not loaded.training
    fields = {**vars(model), "blocks": 7}
    tensors = {name: tensor.contiguous() for name, tensor in G.state_dict().items()}
    save_file(tensors, path, metadata={"about": json.dumps({"model": fields, "card": {}})})
    with pytest.warns(UserWarning, match="ignored, since unknown: blocks"):
        torch.testing.assert_close(vitgan.load_generator(path)[0](z), G(z))
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"not weights")
    for name in ("foreign", "text", "missing"):
        with pytest.raises(ValueError, match="holds no generator of this notebook"):
            vitgan.load_generator(tmp_path / f"{name}.safetensors")
