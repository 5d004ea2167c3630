"""The command `python helpers.py`, and the README's scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, ROOT
from PIL import Image

import helpers

SNIPPETS = re.findall("^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_main_explains_itself_and_refuses_unknown_settings():
    command = [sys.executable, ROOT / "helpers.py"]
    asked, wrong = (subprocess.Popen([*command, word], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    for word in ("--help", "lr_gg=0.1"))
    assert "python helpers.py [NAME=VALUE ...]" in asked.communicate(timeout=60)[0] and asked.returncode == 0
    assert "'lr_gg' is no setting; did you mean lr_g?" in wrong.communicate(timeout=60)[1] and wrong.returncode == 1


def test_main_reads_data_dir_relative_to_the_caller(vitgan, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITGAN_SETTINGS", "")
    monkeypatch.setattr(helpers, "load_definitions", lambda path: vitgan)
    monkeypatch.setattr(helpers, "run_notebook", lambda path: path)
    for folder in ("my photos", "2024"):
        helpers.main([f"data_dir={folder}", "profile=smoke", "minutes=2"])
        settings = helpers.parse_settings(os.environ["VITGAN_SETTINGS"])
        assert settings == {"data_dir": str(tmp_path / folder), "profile": "smoke", "minutes": 2}


def test_run_notebook_keeps_what_was_computed_when_a_cell_fails(tmp_path):
    cells = [nbformat.v4.new_code_cell(code) for code in ("print('run folder: runs/x')", "1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    with pytest.raises(SystemExit, match="ZeroDivisionError: division by zero"):
        helpers.run_notebook(tmp_path / "a.ipynb")
    written = nbformat.read(tmp_path / "runs" / "x" / "a.ipynb", as_version=4)
    assert written.cells[0].outputs[0].text == "run folder: runs/x\n" and written.cells[1].outputs[0].ename == "ZeroDivisionError"


def test_torchrun_trains_in_two_processes_and_keeps_one_checkpoint(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "helpers.py"]
    done = subprocess.run([*launch, "profile=smoke", "data_dir=digits", "total_images=64"], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "VITGAN_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    (checkpoint,) = tmp_path.rglob("checkpoint.pt")
    assert helpers.load_checkpoint(checkpoint)["images_seen"] == 64
    assert (checkpoint.parent / "samples-000000064.png").exists()  # the notebook, which goes on from here, shows it


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_readme_snippets_end_in_a_picture(snippet, tmp_path):
    for path in (NOTEBOOK, ROOT / "helpers.py", ROOT / "assets"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "photos").mkdir()
    for i in range(20):
        Image.new("RGB", (20, 20), (12 * i, 99, 0)).save(tmp_path / "photos" / f"{i}.png")
    for old, new in [('"cpu"', '"smoke"'), ('"path/to/images"', '"photos"'), ("100_000", "64")]:
        snippet = snippet.replace(old, new)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    pictures = [p for p in Path(tmp_path).rglob("*.png") if p.parent.name != "photos"]
    assert pictures and all(Image.open(p).size[0] > 30 for p in pictures)
