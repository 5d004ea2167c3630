"""What happens before the first network: helpers.py is found or fetched, choices become settings, Drive, minutes."""

import dataclasses
import hashlib
import json
import os
import re
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from colab import colab_environment, serve, sessions
from conftest import NOTEBOOK, ROOT

import helpers

HELPERS = b"# helpers.py of this version\n"
CELLS = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
FETCHING = next(i for i, source in enumerate(CELLS) if "HELPERS_SHA256 =" in source)
FORM = next(source for source in CELLS if "#@title Your choices" in source)
CONFIG = next(source for source in CELLS if "Config.profile(profile, **choices)" in source)
FORKED = "https://github.com/someone/fork/blob/my/branch/ViTGAN_CIFAR10.ipynb"


# -------------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Run the notebook's two fetching cells in an empty folder; returns the global names that they leave."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)

    def run(address, edits=(), colab=False):
        for name, value in colab_environment(address).items():
            if colab or name == "VITGAN_MIRROR":
                monkeypatch.setenv(name, value)
        names = {}
        for source in CELLS[FETCHING : FETCHING + 2]:
            source = re.sub('HELPERS_SHA256 = ".*"', f'HELPERS_SHA256 = "{hashlib.sha256(HELPERS).hexdigest()}"', source)
            for old, new in edits:
                source = source.replace(old, new)
            try:
                exec(source, names)
            except Exception as error:
                lines = error._render_traceback_()  # what IPython shows in place of a traceback
                assert len(lines) == 1 and "\n" not in lines[0] and lines[0].endswith(".")
                raise
        return names

    return run


@pytest.fixture
def upload(monkeypatch):
    """A google.colab whose user uploads the given files; Colab writes them to disk as well."""

    def offer(chosen):
        def choose():
            for name, content in chosen.items():
                Path(name).write_bytes(content)
            return chosen

        for name, module in {"google": types.ModuleType("google"), "google.colab": types.ModuleType("google.colab")}.items():
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules["google.colab"].files = SimpleNamespace(upload=choose)

    return offer


def left():
    return {path.name: path.read_bytes() for path in Path().iterdir()}


def test_the_notebook_knows_the_hash_of_its_helpers():
    stated = re.search('HELPERS_SHA256 = "(.*)"', CELLS[FETCHING])[1]
    actual = hashlib.sha256((ROOT / "helpers.py").read_bytes()).hexdigest()
    assert stated == actual, f'helpers.py has changed: in the notebook, set HELPERS_SHA256 = "{actual}"'


def test_helpers_beside_the_notebook_are_used_as_they_are(fetch, tmp_path):
    (tmp_path / "helpers.py").write_text("mine = True\n")
    fetch("http://127.0.0.1:9")
    assert left() == {"helpers.py": b"mine = True\n"}


def test_fetched_from_the_setting(fetch):
    with serve({"/ORG/REPO/main/helpers.py": HELPERS}) as address:
        names = fetch(address)
    assert left() == {"helpers.py": HELPERS} and names["SOURCES"] == [f"{address}/ORG/REPO/main"]


def test_fetched_from_where_colab_opened_the_notebook(fetch):
    answers = {"/api/sessions": sessions(FORKED), "/someone/fork/my/branch/helpers.py": HELPERS}
    with serve(answers) as address:
        names = fetch(address, colab=True)
    assert left() == {"helpers.py": HELPERS} and names["SOURCES"][0] == f"{address}/someone/fork/my/branch"


@pytest.mark.parametrize("listed", [
    None, b"", b"[]", b"not JSON", b"{}", b'[{"name": "x"}]', b"[null]", sessions("1aB-cD_driveFileId"),
    b'[{"path": "/content"}]', sessions("https://huggingface.co/a/b/blob/main/x.ipynb"), sessions("https://github.com/a/b/tree/main")])
def test_another_list_of_sessions_leaves_it_to_the_setting(fetch, listed):
    with serve({"/api/sessions": listed, "/you/kit/v1/helpers.py": HELPERS}) as address:
        names = fetch(address, [('"ORG/REPO"', '"you/kit"'), ('"main"', '"v1"')], colab=True)
    assert left() == {"helpers.py": HELPERS} and names["SOURCES"] == [f"{address}/you/kit/v1"]


def test_the_setting_helps_where_the_notebook_was_opened_without_helpers(fetch):
    with serve({"/api/sessions": sessions(FORKED), "/ORG/REPO/main/helpers.py": HELPERS}) as address:
        fetch(address, colab=True)
    assert left() == {"helpers.py": HELPERS}


def stall():
    time.sleep(1)


@pytest.mark.parametrize("answer, reason", [
    (None, "404"), (b"# another\n", f"another version, SHA-256 {hashlib.sha256(b'# another' + bytes([10])).hexdigest()[:12]}…"),
    (b"", "another version"), (stall, "timed out")])
def test_one_sentence_when_the_file_cannot_be_had(fetch, answer, reason):
    with serve({"/ORG/REPO/main/helpers.py": answer}) as address, pytest.raises(Exception) as raised:
        fetch(address, [("helpers.py\", 20)", "helpers.py\", 0.2)")])
    message = str(raised.value)
    assert type(raised.value).__name__ == "SetupError" and reason in message and left() == {}
    assert hashlib.sha256(HELPERS).hexdigest()[:12] in message, "what was expected"
    assert f"{address}/ORG/REPO/main/helpers.py" in message and "put it beside this notebook" in message


def test_one_sentence_without_a_network(fetch):
    with pytest.raises(Exception, match="refused.*put it beside this notebook"):
        fetch("http://127.0.0.1:9")
    assert left() == {}


def test_an_address_that_is_none_is_named(fetch):
    with pytest.raises(Exception, match="put it beside"):
        fetch("http://127.0.0.1:9", [('"ORG/REPO"', '"no such\\nplace"')])


def test_kaggle_without_internet_is_told_what_to_switch(fetch, monkeypatch, upload):
    upload({"helpers.py": HELPERS})  # Kaggle's images have a google.colab too, where nobody can upload
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    with pytest.raises(Exception, match="Internet in Kaggle's settings"):
        fetch("http://127.0.0.1:9")
    assert left() == {}


def test_kaggle_takes_helpers_from_a_data_set(fetch, tmp_path_factory):
    for folder in ("vitgan", "datasets/someone/vitgan"):
        attached = tmp_path_factory.mktemp("input")
        (attached / folder).mkdir(parents=True)
        (attached / folder / "helpers.py").write_bytes(b"# attached\n")
        fetch("http://127.0.0.1:9", [("/kaggle/input", str(attached))])
        assert left() == {"helpers.py": b"# attached\n"}
        os.remove("helpers.py")


def test_colab_offers_to_upload(fetch, upload, capsys):
    upload({"helpers (1).py": HELPERS})
    fetch("http://127.0.0.1:9")
    assert left() == {"helpers.py": HELPERS} and "please upload it." in capsys.readouterr().out


@pytest.mark.parametrize("chosen, reason", [
    ({}, "0 files"), ({"helpers.py": b"# another\n"}, "another version"), ({"a.py": HELPERS, "b.py": HELPERS}, "2 files")])
def test_another_upload_is_refused_and_removed(fetch, upload, chosen, reason):
    upload(chosen)
    with pytest.raises(Exception, match=f"nor by uploading .{reason}.*put it beside"):
        fetch("http://127.0.0.1:9")
    assert left() == {}


# --------------------------------------------------------------------------------------------------------- choices


@pytest.fixture
def choose(vitgan, monkeypatch):
    """The Config that the form makes, its fields filled in as given."""
    monkeypatch.delenv("VITGAN_PROFILE", raising=False)
    monkeypatch.delenv("VITGAN_DATA_DIR", raising=False)

    def run(**fields):
        names = {**vars(vitgan), "helpers": helpers, "os": os, "device": torch.device("cpu")}
        exec(FORM, names)
        assert set(fields) <= set(names)
        names |= fields
        exec(CONFIG, names)
        return names["config"]

    return run


def test_the_form_has_five_fields():
    fields = dict(re.findall(r"^(\w+) = (.+?)  #@param", FORM, re.MULTILINE))
    assert fields == {"profile": '"auto"', "data_dir": '""', "minutes": "0", "seed": "0", "drive": "False"}


def test_a_form_left_alone_changes_nothing(vitgan, choose, monkeypatch):
    assert choose() == vitgan.Config.profile("cpu")
    monkeypatch.setenv("VITGAN_PROFILE", "smoke")
    assert choose() == vitgan.Config.profile("smoke")


def test_choices_win_over_the_environment(vitgan, choose, monkeypatch):
    monkeypatch.setenv("VITGAN_PROFILE", "smoke")
    monkeypatch.setenv("VITGAN_DATA_DIR", "theirs")
    assert choose() == vitgan.Config.profile("smoke", data_dir="theirs")
    assert choose(profile="paper", data_dir="mine", seed=3) == vitgan.Config.profile("paper", data_dir="mine", seed=3)


def test_minutes_alone_decide_when_they_are_set(vitgan, choose):
    config = choose(minutes=90)
    assert (config.max_minutes, config.total_images) == (90, vitgan.NO_LIMIT)
    assert config == dataclasses.replace(vitgan.Config.profile("cpu"), max_minutes=90, total_images=vitgan.NO_LIMIT)
    with pytest.raises(vitgan.ConfigError, match="max_minutes=-5"):
        choose(minutes=-5)


def test_nothing_asks_for_a_login():
    asking = re.compile(r"\binput\(|getpass|auth\.authenticate|userdata|drive\.mount|notebook_login")
    assert [source for source in CELLS if asking.search(source)] == []


def test_hidden_cells_have_a_title_and_no_others():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in (c for c in cells if c["cell_type"] == "code"):
        assert "".join(cell["source"]).startswith("#@title ") == (cell["metadata"].get("cellView") == "form")


# --------------------------------------------------------------------------------------------------------- minutes


@pytest.mark.parametrize("max_minutes, total, stop, words", [
    (10.0, 10**6, 6_000 * 10, "100 images/s, 10 minutes are enough for about 60,000 of 1,000,000 images"),
    (10.0, 50_000, 50_000, "100 images/s, all 50,000 images take about 8.3 minutes"),
    (10, None, 60_000, "10 minutes are enough for about 60,000 images; training stops there"),
    (1e6, 64_000_000, 64_000_000, "all 64,000,000 images take about 10,666.7 minutes")])
def test_forecast(vitgan, max_minutes, total, stop, words):
    config = SimpleNamespace(max_minutes=max_minutes, total_images=total or vitgan.NO_LIMIT)
    history = [{"images": 1_000, "seconds": 10.0}, {"images": 3_000, "seconds": 30.0}]
    reach, sentence = vitgan.forecast(SimpleNamespace(config=config, history=history))
    assert reach == stop and words in sentence


def test_forecast_leaves_compilation_out_and_comes_true(vitgan, make_config, images, tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 100.0, *(100.0 + i for i in range(1, 1000))])  # 100 s for the first entry, then 1 s for 8 images
    monkeypatch.setattr(vitgan, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = make_config(total_images=vitgan.NO_LIMIT, max_minutes=2, snapshot_minutes=60.0)
    run = vitgan.train(config, images, tmp_path)
    out = capsys.readouterr().out
    assert out.count("images/s") == 1 and "At 8 images/s, 2 minutes are enough for about 168 images" in out
    assert run.images_seen == 168 and run.seconds == 120


# ----------------------------------------------------------------------------------------------------------- Drive


@pytest.fixture
def run_dir(tmp_path):
    """A run's folder with a checkpoint of 8 images and a sample."""
    folder = tmp_path / "runs" / "cpu-cats"
    helpers.save_checkpoint(folder / "checkpoint.pt", {"images_seen": 8})
    (folder / "samples").mkdir()
    (folder / "samples" / "000000008.png").write_bytes(b"picture")
    (folder / "private.txt").touch()
    return folder


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A google.colab.drive that mounts tmp_path/Drive; returns that folder."""
    kept = tmp_path / "Drive"

    def mount(place):
        Path(place).mkdir()
        kept.mkdir(exist_ok=True)
        (Path(place) / "MyDrive").symlink_to(kept)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["google.colab"].drive = SimpleNamespace(mount=mount)
    return kept


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_mirror_copies_what_is_new_and_nothing_else(run_dir, tmp_path):
    (to := tmp_path / "to").mkdir()
    assert helpers.mirror(run_dir, to)
    assert set(files(to)) == {"checkpoint.pt", "samples/000000008.png"}
    assert helpers.load_checkpoint(to / "checkpoint.pt") == {"images_seen": 8}
    os.utime(to / "samples" / "000000008.png", (4e9, 4e9))
    helpers.save_checkpoint(run_dir / "checkpoint.pt", {"images_seen": 16})
    assert helpers.mirror(run_dir, to) and helpers.images_seen(to) == 16
    assert (to / "samples" / "000000008.png").stat().st_mtime == 4e9, "an old file was copied again"


@pytest.mark.parametrize("failures, fine", [(0, True), (2, True), (3, False)])
def test_mirror_tries_three_times(run_dir, tmp_path, monkeypatch, failures, fine, recwarn):
    (to := tmp_path / "to").mkdir()
    waits, left, copyfile = [], [failures], helpers.shutil.copyfile

    def copy(source, target):
        if left[0]:
            left[0] -= 1
            raise OSError(107, "Transport endpoint is not connected")
        return copyfile(source, target)

    monkeypatch.setattr(helpers.shutil, "copyfile", copy)
    monkeypatch.setattr(time, "sleep", waits.append)
    assert helpers.mirror(run_dir, to) == fine
    assert len(waits) == min(failures, 2) and len(recwarn) == (not fine)
    assert files(to) == ({} if not fine else {k: v for k, v in files(run_dir).items() if k != "private.txt"})


def test_a_lost_mount_is_told_once_and_nothing_is_made_in_its_place(run_dir, tmp_path, drive, recwarn):
    on_drive = helpers.drive_folder(run_dir, tmp_path / "mounted")
    assert helpers.mirror(run_dir, on_drive)
    (tmp_path / "mounted" / "MyDrive").unlink()
    assert [helpers.mirror(run_dir, on_drive) for _ in range(3)] == [False] * 3
    assert len(recwarn) == 1 and "is out of reach" in str(recwarn[0].message) and not files(tmp_path / "mounted")
    (tmp_path / "mounted" / "MyDrive").symlink_to(drive)
    assert helpers.mirror(run_dir, on_drive), "it came back"


def test_drive_brings_back_the_run_that_saw_more(run_dir, tmp_path, drive):
    helpers.mirror(run_dir, helpers.drive_folder(run_dir, tmp_path / "first"))
    new = tmp_path / "another session" / run_dir.name
    assert helpers.drive_folder(new, tmp_path / "second") == tmp_path / "second" / "MyDrive" / "ViTGAN" / run_dir.name
    assert set(files(new)) == {"checkpoint.pt", "samples/000000008.png"} and helpers.images_seen(new) == 8
    helpers.save_checkpoint(run_dir / "checkpoint.pt", {"images_seen": 16})
    helpers.drive_folder(run_dir, tmp_path / "third")
    assert helpers.images_seen(run_dir) == 16, "the local run is further"


def test_without_drive_one_sentence_and_on(run_dir, tmp_path, drive, monkeypatch):
    with pytest.warns(UserWarning, match="Google Drive cannot be used .FileExistsError.*; going on without it"):
        (tmp_path / "mounted").mkdir()
        assert helpers.drive_folder(run_dir, tmp_path / "mounted") is None
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert helpers.drive_folder(run_dir, tmp_path / "other") is None


def test_a_checkpoint_that_cannot_be_fetched_is_never_overwritten(run_dir, tmp_path, drive, monkeypatch):
    helpers.mirror(run_dir, helpers.drive_folder(run_dir, tmp_path / "first"))
    monkeypatch.setattr(helpers.shutil, "copyfile", lambda *paths: (_ for _ in ()).throw(OSError("gone")))
    with pytest.warns(UserWarning, match="going on without it"):
        assert helpers.drive_folder(tmp_path / "new" / run_dir.name, tmp_path / "second") is None


def test_each_seed_has_a_folder_of_its_own():
    assert len({helpers.run_folder("cpu", "CIFAR-10", seed) for seed in range(3)}) == 3
    assert helpers.run_folder("cpu", "CIFAR-10", 0) == helpers.run_folder("cpu", "CIFAR-10")
