"""Faults injected, one by one: each is survived with nothing lost, or refused in one clear sentence.

    python -m pytest -q --slow tests/test_faults.py

Without --slow a sample of them. Other files have faults, too, marked `fault`; pytest counts all of them at its end.
"""

import copy
import dataclasses
import gc
import hashlib
import math
import multiprocessing
import os
import random
import re
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import fault_worker
import helpers
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from conftest import NOTEBOOK, ROOT, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from PIL import Image
from test_checkpoint import different, everything

SENTENCE = r"[^\n]+\Z"


@pytest.fixture(scope="module")
def process():
    """Start a function of fault_worker in a process of its own; all of them are killed in the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_worker"])
    started = []

    def start(*args):
        started.append(context.Process(target=fault_worker.train, args=args, daemon=True))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()


def wait_for(condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0002)


# ---------------------------------------------------------------------------------------------------------------- kills


def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(process, train, tmp_path, fault, slow):
    """Half of the kills come while a checkpoint is being written."""
    path, draw, seen = tmp_path / "killed" / "checkpoint.pt", random.Random(0), 0
    for i in range(30 if slow else 4):
        with fault():
            log = path.parent / "samples" / f"{seen + 8:09d}.png"  # written before the first checkpoint of this process
            log.unlink(missing_ok=True)
            worker = process(str(path.parent))
            wait_for(log.exists)
            if i % 2:
                wait_for(path.with_suffix(".tmp").exists)
                time.sleep(draw.uniform(0, 0.005))
            else:
                time.sleep(draw.uniform(0, 0.3))
            assert worker.is_alive()
            worker.kill()
            worker.join()
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # no damaged checkpoint
                seen = (helpers.load_checkpoint(path) or {"images_seen": 0})["images_seen"]
    for picture in (path.parent / "samples").glob("*.png"):
        plt.imread(picture)
    killed, through = (train(folder, total_images=seen + 8) for folder in ("killed", "through"))
    assert different(everything(killed), everything(through)) == [] and killed.step == seen // 4 + 2
    assert seen > 0


# ----------------------------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def interrupt_in(vitgan, monkeypatch):
    """Send Ctrl-C to this process once, in the middle of step n: D has moved, G has not."""
    def prepare(n):
        honest = vitgan.generator_step

        def interrupted(run, fakes):
            if run.step == n - 1:
                monkeypatch.setattr(vitgan, "generator_step", honest)
                os.kill(os.getpid(), signal.SIGINT)
            return honest(run, fakes)

        monkeypatch.setattr(vitgan, "generator_step", interrupted)

    return prepare


def without_history(run):
    return {name: value for name, value in everything(run).items() if not name.startswith("history")}


@pytest.mark.fault
@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_interrupt_loses_no_step(train, tmp_path, interrupt_in, n):
    interrupt_in(n)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {n} .*from {4 * n} images. Run this again {SENTENCE}"):
        train("interrupted", total_images=24)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert helpers.load_checkpoint(tmp_path / "interrupted" / "checkpoint.pt")["step"] == n
    interrupted, through = (train(folder, total_images=24) for folder in ("interrupted", "through"))
    assert different(without_history(interrupted), without_history(through)) == []
    assert interrupted.history[-1]["images"] == 24


@pytest.mark.fault
def test_a_second_interrupt_ends_at_once_and_the_folder_is_free_again(vitgan, train, monkeypatch):
    honest = vitgan.generator_step

    def twice(run, fakes):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return honest(run, fakes)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(vitgan, "generator_step", twice)
        train()
    assert not str(caught.value)
    assert train().images_seen == 24


@pytest.mark.fault
def test_an_interrupt_while_a_snapshot_is_shown_waits_for_it(train, tmp_path):
    shown = []

    def slow_picture(run, samples):
        os.kill(os.getpid(), signal.SIGINT)
        shown.append(run.step)

    with pytest.raises(KeyboardInterrupt, match="after step 2 "):
        train(on_snapshot=slow_picture)
    assert shown == [2] and len(list((tmp_path / "samples").iterdir())) == 1


def test_training_in_a_thread_needs_no_signals(train):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(total_images=8)))
    thread.start()
    thread.join()
    assert runs[0].images_seen == 8


# ---------------------------------------------------------------------------------------------- two trainings, one folder


@pytest.mark.fault
def test_a_second_process_is_refused_until_the_first_is_gone(process, train, tmp_path):
    worker = process(str(tmp_path))
    wait_for((tmp_path / "checkpoint.pt").exists)
    with pytest.raises(RuntimeError, match=f"run_dir='{tmp_path}' is in use by another training; stop {SENTENCE}"):
        train(total_images=10**9, max_minutes=1e-9)
    assert worker.is_alive()
    worker.kill()
    worker.join()
    seen = helpers.load_checkpoint(tmp_path / "checkpoint.pt")["images_seen"]
    assert train(total_images=seen + 4).images_seen == seen + 4


def test_a_training_that_failed_frees_its_folder_although_its_error_is_kept(train):
    def fail(run, samples):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as kept:
        train(on_snapshot=fail)
    assert train().images_seen == 24 and kept


@pytest.mark.fault
def test_a_drive_without_locks_does_without(train, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert train().images_seen == 24


# ---------------------------------------------------------------------------------------------------- disks that refuse


def full_disk(folder):
    """A checkpoint's bytes go to /dev/full: the error is the kernel's own."""
    if not Path("/dev/full").exists():
        pytest.skip("needs Linux's /dev/full")
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.tmp").symlink_to("/dev/full")


def no_folder(folder):
    """A file where the folder should be: nothing can be written, whoever asks."""
    folder.write_text("")


@pytest.mark.fault
@pytest.mark.parametrize("refuse", [full_disk, no_folder])
def test_training_goes_on_when_nothing_can_be_written(train, tmp_path, refuse):
    refuse(tmp_path / "refused")
    with pytest.warns(UserWarning) as caught:
        run = train("refused", snapshot_minutes=60.0)
    (warning,) = caught
    assert "not saved (" in str(warning.message) and "save(run)" in str(warning.message) and "\n" not in str(warning.message)
    assert different(everything(run), everything(train("through", snapshot_minutes=60.0))) == [] and run.saved == 0


@pytest.mark.fault
def test_the_next_snapshot_is_saved_when_there_is_room_again(vitgan, train, tmp_path):
    train(total_images=8)

    def fill_once(run, samples):
        if run.images_seen == 16:
            full_disk(tmp_path)

    with pytest.warns(UserWarning, match=r"not saved \(OSError: \[Errno 28\]"):
        run = train(total_images=32, on_snapshot=fill_once)
    assert run.saved == 32 and helpers.load_checkpoint(tmp_path / "checkpoint.pt")["images_seen"] == 32
    assert helpers.load_checkpoint(tmp_path / "checkpoint.previous.pt")["images_seen"] == 16


@pytest.mark.fault
def test_what_the_last_snapshot_could_not_save_can_be_saved_later(vitgan, train, tmp_path):
    full_disk(tmp_path)
    with pytest.warns(UserWarning, match="not saved"):
        run = train(snapshot_minutes=60.0)
    vitgan.save(run)
    assert run.saved == helpers.load_checkpoint(tmp_path / "checkpoint.pt")["images_seen"] == 24


@pytest.mark.fault
def test_an_interrupt_with_a_full_disk_tells_what_is_kept(train, tmp_path, interrupt_in):
    train(total_images=8)
    full_disk(tmp_path)
    interrupt_in(3)
    with pytest.warns(UserWarning, match="not saved"), pytest.raises(KeyboardInterrupt, match=r"\(12 images\).* from 8 images"):
        train(snapshot_minutes=60.0)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.fault
@pytest.mark.parametrize("change", [
    lambda state: state.pop("rng"), lambda state: state.pop("config"), lambda state: state["G"].popitem(),
    lambda state: state["D"].update(more=torch.ones(2)), lambda state: state.update(opt_g=[]),
    lambda state: state["opt_d"].update(param_groups=[]), lambda state: state["G"].update(w_mean=torch.ones(3)),
    lambda state: state.update(config=None)])
def test_a_checkpoint_of_another_version_is_refused_and_kept(vitgan, train, tmp_path, change):
    run = train(total_images=8)
    state = vitgan.state_of(run)
    change(state)
    helpers.save_checkpoint(tmp_path / "checkpoint.pt", state)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(vitgan.ConfigError, match=f"holds a checkpoint of another version of this kit .*allowed: another {SENTENCE}"):
        train()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.fault
def test_a_damaged_checkpoint_never_replaces_the_whole_one_before(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        helpers.save_checkpoint(path, {"step": step})
    path.write_bytes(path.read_bytes()[:-9])
    helpers.save_checkpoint(path, {"step": 3})
    assert helpers.load_checkpoint(path)["step"] == 3 and helpers.load_checkpoint(helpers.previous(path))["step"] == 1


# ------------------------------------------------------------------------------------------------------------------ NaN


@pytest.mark.fault
@pytest.mark.parametrize("what, network", [
    ("loss", "G"), ("loss", "D"), ("gradient", "G"), ("gradient", "D"), ("weight", "G"), ("weight", "D"), ("weight", "ema")])
def test_nan_anywhere_stops_training_with_a_whole_checkpoint(vitgan, train, tmp_path, monkeypatch, network, what):
    """Injected in step 3 of 6; the checkpoint kept is that of step 2."""
    honest, losses = vitgan.training_step, {"G": "generator_loss", "D": "discriminator_loss"}

    def poisoned_step(run, images):
        weight = next(getattr(run, network).parameters())
        if run.step == 2 and what == "weight":
            weight.data.view(-1)[0] = math.nan
        if run.step == 2 and what == "gradient":
            weight.register_hook(lambda gradient: gradient * math.nan)
        if run.step == 2 and what == "loss":
            loss = getattr(vitgan, losses[network])
            patch.setattr(vitgan, losses[network],
                          lambda *args: (lambda value, numbers: (value * math.nan, numbers))(*loss(*args)))
        return honest(run, images)

    with monkeypatch.context() as patch, pytest.raises(
            FloatingPointError, match=f"is not finite at step [34], .* from 8 images is whole in .*: half of {SENTENCE}"):
        patch.setattr(vitgan, "training_step", poisoned_step)
        train()
    state = helpers.load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 2 and all(t.isfinite().all() for name in ("G", "D", "ema") for t in state[name].values())
    assert different(everything(train()), everything(train("through"))) == []


# ------------------------------------------------------------------------------------------------------------ downloads


CONTENT = b"0123456789" * 30_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"


def drip(connection, content):
    for byte in content:
        connection.send(bytes([byte]))
        time.sleep(0.1)


ANSWERS = {  # what a server does with a connection, and a word of the sentence that follows
    "interrupted": (lambda c: (c.send(HEAD + CONTENT[:200_000]), c.close()), "200,000 bytes|IncompleteRead"),
    "reset": (lambda c: (c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"), c.close()), "Error"),
    "cut without a length": (lambda c: (c.send(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT[:-1]), c.close()), "299,999 bytes"),
    "silent": (lambda c: None, "less than 100 kB|timed out"),
    "dripping headers": (lambda c: drip(c, HEAD), "less than 100 kB"),
    "dripping": (lambda c: (c.send(HEAD), drip(c, CONTENT)), "less than 100 kB"),
    "stalled": (lambda c: c.send(HEAD + CONTENT[:150_000]), "less than 100 kB|timed out"),
    "wrong content": (lambda c: (c.send(HEAD + CONTENT[::-1]), c.close()), f"expected {SHA256}"),
    "log-in page": (lambda c: (c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"), c.close()), "gave 6 bytes"),
    "no such file": (lambda c: (c.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), c.close()), "404"),
    "not HTTP": (lambda c: (c.send(b"hello?\r\n\r\n"), c.close()), "could not be downloaded"),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_download_that_fails_leaves_nothing_and_the_next_one_works(serve, tmp_path, kind):
    behave, word = ANSWERS[kind]
    url, path = serve(lambda c: (c.recv(4096), behave(c))), tmp_path / "new" / "file"
    start = time.monotonic()
    with pytest.raises(OSError, match=f"{url} [^\n]*({word})[^\n]*$"):
        helpers.download(url, path, SHA256, seconds=0.3)
    assert time.monotonic() - start < 3 and not list(tmp_path.rglob("*"))
    helpers.download(serve(lambda c: (c.recv(4096), c.send(HEAD + CONTENT), c.close())), path, SHA256)
    assert path.read_bytes() == CONTENT and len(list(path.parent.iterdir())) == 1


@pytest.mark.fault
def test_offline_a_whole_file_is_taken_and_a_damaged_one_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
    helpers.download(url, path, SHA256)
    path.write_bytes(CONTENT[1:])
    with pytest.raises(OSError, match="refused"):
        helpers.download(url, path, SHA256)
    assert path.read_bytes() == CONTENT[1:]


# --------------------------------------------------------------------------------------------------------------- images


def looped(folder):
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "self.png").symlink_to(folder / "self.png")


def animated(folder):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])


def transparent_palette(folder):
    image = Image.new("P", (9, 9), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((4, 4), 0)
    image.save(folder / "a.png", transparency=bytes([0, 255]))  # red, but not to be seen


def picture(name, mode="RGB", size=(9, 9), colour=(0, 0, 255)):
    return lambda folder: Image.new(mode, size, colour).save(folder / name)


def cut(folder):
    picture("a.jpg", size=(99, 99))(folder)
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-200])


BLUE = (0, 0, 255)
ODD_IMAGES = {  # how to make it, the colour it must have (None: it is named in a warning and left out)
    "1 x 1": (picture("a.png", size=(1, 1)), BLUE),
    "16 bits": (picture("a.png", "I;16", colour=257 * 77), (77, 77, 77)),
    "CMYK JPEG": (picture("a.jpg", "CMYK", colour=(255, 255, 0, 0)), BLUE),
    "animation": (animated, BLUE),
    "palette with alpha": (transparent_palette, BLUE),
    "alpha": (picture("a.png", "RGBA", colour=(255, 0, 0, 0)), (255, 255, 255)),
    "grey with alpha": (picture("a.png", "LA", colour=(9, 0)), (255, 255, 255)),
    "20,000 wide": (picture("a.png", size=(20_000, 20)), BLUE),
    "names of all alphabets": (picture("猫 Löwe й 🐈.png"), BLUE),
    "a name that is no text": (lambda folder: Image.new("RGB", (9, 9), BLUE).save(os.fsencode(folder) + b"/\xff.png"), BLUE),
    "bomb": (picture("a.png", "1", (20_000, 20_000), 1), None),
    "truncated": (cut, None),
    "text": (lambda folder: (folder / "a.png").write_text("no image"), None),
    "nothing": (lambda folder: (folder / "a.png").touch(), None),
    "folder of that name": (lambda folder: (folder / "a.png").mkdir(), None),
    "symlink loop": (looped, None),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_odd_images_are_read_or_named(tmp_path, kind):
    make, colour = ODD_IMAGES[kind]
    make(tmp_path)
    with pytest.warns(UserWarning, match="^skipped 1 unreadable file") if colour is None else warnings.catch_warnings():
        if colour:
            warnings.simplefilter("error")
        picture("y.png")(tmp_path), picture("z.png")(tmp_path)
        pixels = helpers.load_images(8, str(tmp_path)).pixels
    assert len(pixels) == (2 if colour is None else 3)
    if colour and kind != "palette with alpha":
        odd = [image for image in pixels if (image.float().mean((1, 2)) - torch.tensor(colour)).abs().max() < 3]
        assert len(odd) == (3 if colour == BLUE else 1)
    if kind == "palette with alpha":
        assert pixels[0, 0].max() > 20 and (pixels[0, 0] == pixels[0, 1]).all(), "white shows through, not red"


@pytest.mark.fault
def test_a_folder_with_one_image_is_refused(tmp_path):
    picture("a.png")(tmp_path)
    with pytest.raises(ValueError, match=f"data_dir='{tmp_path}' holds one readable image; expected at least 2{SENTENCE}"):
        helpers.load_images(8, str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- Config

INSANE = st.sampled_from([None, "", "x", "2", True, False, math.nan, math.inf, -math.inf, -1, -0.5, 0, 0.0, 0.5, 3, 2.0, 17,
                          10**9, 2**31, 2**63, 10**30, 10**400, 1e-300, 1e30, 1e300, (), [1], {}, b"x"])
SANE = dict(
    image_size=st.sampled_from([8, 16, 4, 12, 7, 2, 1]), patch_size=st.sampled_from([4, 2, 1, 8, 3]),
    width=st.sampled_from([4, 2, 12, 6, 9]), blocks=st.integers(1, 2), heads=st.sampled_from([1, 2, 4]), mlp_ratio=st.integers(1, 3), feature_step=st.floats(0, 5),
    latent_dim=st.integers(1, 9), mapping_layers=st.integers(1, 3), siren_hidden=st.integers(1, 3), overlap=st.integers(0, 8),
    data_dir=st.text(max_size=3), positions=st.sampled_from(["linear", "free"]), pool=st.sampled_from(["class", "mean"]),
    discriminator=st.sampled_from(["vit", "vit", "conv"]), l2_sign=st.sampled_from([-1, 1]), l2_exponent=st.floats(0, 2),
    augment=st.lists(st.sampled_from(["color", "translation", "cutout", "scaling", ""]), max_size=5).map(",".join),
    augment_p=st.floats(0, 1), logistic_on=st.sampled_from(["augmented", "plain"]), batch_size=st.sampled_from([4, 8, 6, 1]),
    accumulate=st.sampled_from([1, 2, 4, 3]), bcr_ramp=st.integers(0, 20), warmup=st.integers(0, 20), ema_half_life=st.integers(1, 20),
    total_images=st.integers(1, 20), log_images=st.integers(1, 20), seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "bfloat16", "float16", "float32"]), max_minutes=st.floats(0, 1), snapshot_minutes=st.floats(0, 1),
    **{name: st.booleans() for name in ("demodulate", "whole_image", "flip", "compile")},
    **{name: st.floats(0, 20) for name in ("bcr_real", "bcr_fake", "r1", "lecam")},
    **{name: st.floats(0, 1) for name in ("lr_g", "lr_d")})


@st.composite
def wild_settings(draw):
    """Up to 12 fields at sane values, mostly, and up to two at insane ones in a third of the cases."""
    names = draw(st.lists(st.sampled_from(sorted(SANE)), unique=True, max_size=12))
    insane = draw(st.lists(st.sampled_from(sorted(SANE)), unique=True, max_size=2)) if draw(st.integers(0, 2)) == 2 else []
    return {name: draw(INSANE if name in insane else SANE[name]) for name in [*names, *insane]}


def test_any_settings_train_a_step_or_are_refused_by_name(vitgan, tmp_path_factory, fault, slow):
    """One step, its log, snapshot and checkpoint; NaN is told in its own sentence."""
    assert {*SANE} == {field.name for field in dataclasses.fields(vitgan.Config)}
    outcomes = Counter()

    @settings(max_examples=1000 if slow else 60, suppress_health_check=[HealthCheck.too_slow])
    @given(wild_settings())
    def try_them(options):
        with fault():
            try:
                config = vitgan.Config.profile("smoke", **{**TINY, **options})
            except vitgan.ConfigError as error:
                assert re.search(rf"^\w+=.*; allowed: {SENTENCE}", str(error)), error
                outcomes["refused"] += 1
                return
            config = dataclasses.replace(config, compile=False, total_images=1, max_minutes=1.0)
            pixels = torch.randint(256, (3, 3, config.image_size, config.image_size), dtype=torch.uint8)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    assert vitgan.train(config, pixels, folder, quiet=True).step == 1
                    outcomes["trained"] += 1
                except FloatingPointError as error:
                    assert re.search("is not finite at step 1, ", str(error))
                    outcomes["not finite"] += 1

    try_them()
    assert min(outcomes["trained"], outcomes["refused"]) > outcomes.total() / 5, outcomes


# ---------------------------------------------------------------------------------------------------------------- cells


def code_cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture
def shell(monkeypatch):
    """An IPython shell in the folder of the notebook, in the smoke profile."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VITGAN_PROFILE", "smoke")
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.filterwarnings("ignore")
def test_cells_out_of_order_work_or_say_which_first(shell, fault, capsys):
    """After the set-up (section 1) alone, every other cell."""
    cells = code_cells()
    begin = next(i for i, cell in enumerate(cells) if "helpers.hint_at_order()" in cell.source)
    for cell in cells[: begin + 1]:
        assert shell.run_cell(cell.source).success
    known, worked = dict(shell.user_ns), 0
    for cell in cells[begin + 1 :]:
        with fault():
            shell.user_ns.clear()
            shell.user_ns.update(known)
            result = shell.run_cell(cell.source)
            plt.close("all")
            worked += result.success
            if not result.success:
                assert isinstance(result.error_in_exec, NameError), cell.source
                assert re.search(f"^name '\\w+' is not defined; .*run all cells above this one first {SENTENCE}", str(result.error_in_exec))
    assert 0 < worked < len(cells) / 2
    assert "Runtime > Run before" in capsys.readouterr().out


def doubled(notebook, folder):
    """Every code cell twice in a row."""
    notebook.cells = [copy.deepcopy(cell) for cell in code_cells() for _ in range(2)]


def two_images(notebook, folder):
    for name in "ab":
        picture(f"{name}.png", size=(16, 16), colour=(ord(name), 0, 0))(folder)
    return {"VITGAN_DATA_DIR": str(folder)}


def refused_runs(notebook, folder):
    """A file where the folder of all runs should be."""
    (folder / "file").write_text("")
    return {"VITGAN_RUNS": str(folder / "file")}


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("change", [doubled, two_images, refused_runs])
def test_the_whole_notebook_runs(tmp_path, monkeypatch, change):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = {"VITGAN_PROFILE": "smoke", "VITGAN_RUNS": str(tmp_path / "runs"), **(change(notebook, tmp_path) or {})}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.fault
def test_memory_does_not_grow(vitgan, make_config, images, tmp_path, slow):
    """As many tensors after the last of 10 snapshots as after the first, and no more than 16 MB of memory more."""
    steps, tensors, megabytes = 20_000 if slow else 200, [], []

    def measure(run, samples):
        gc.collect()
        tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    config = make_config(image_size=4, patch_size=4, overlap=1, width=4, latent_dim=4, batch_size=1, log_images=steps // 10,
                         total_images=steps)
    run = vitgan.train(config, images[..., :4, :4], tmp_path, measure, quiet=True)
    assert run.step == steps and len(tensors) == 10
    assert tensors[-1] == tensors[0] and megabytes[-1] - megabytes[0] < 16
