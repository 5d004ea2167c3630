"""`python helpers.py`, alone and under torchrun; README's commands and script; the set-up cell."""

import json
import os
import re
import shutil
import sys

import pytest
import torch
from conftest import NOTEBOOK, ROOT, run
from PIL import Image

import helpers

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMOKE = ["profile=smoke", "data_dir=digits", "image_size=16", "total_images=64"]


def test_torchrun_trains_in_two_processes_and_one_goes_on_from_their_checkpoint(
    tmp_path, vitgan, monkeypatch
):
    launch = re.search(r"`\.venv/bin/torchrun (.*?) helpers.py .*?`", README)[1].split()
    script, place = [ROOT / "helpers.py", *SMOKE], dict(folder=tmp_path, VITGAN_RUNS="runs")
    out, err = run(sys.executable, "-m", "torch.distributed.run", *launch, *script, **place)
    (said,) = re.findall("weights and samples: (.*)", out)
    (folder,) = (path.parent for path in tmp_path.rglob("checkpoint.pt"))
    assert folder == tmp_path / said and "images/s" in err
    out, _ = run(sys.executable, *script, "total_images=96", **place)
    assert "has seen 64 images; going on from there" in out
    G, _, card = vitgan.load_generator(folder / "weights.safetensors")
    average = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["G_ema"]
    torch.testing.assert_close(G.state_dict(), average, rtol=1e-3, atol=1e-3)
    assert card["images seen"] == 96
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITGAN_RUNS", "runs")
    with pytest.raises(SystemExit, match="has seen 96 images; it is finished. With a larger total"):
        helpers.main([*SMOKE, "total_images=96"])
    out, _ = run(sys.executable, *script, "total_images=128", f"run_dir={folder}", **place)
    assert f"{folder} has seen 96 images; going on from there" in out


def test_readme_script_ends_in_a_picture(kit):
    (script,) = re.findall("^```python\n(.*?)^```", README, re.M | re.S)
    run(sys.executable, "-c", script, folder=kit)
    (picture,) = kit.glob("*.png")
    assert Image.open(picture).size[0] > 30


def test_set_up_cell_of_a_published_copy_clones_it_once(tmp_path, monkeypatch):
    """In an empty folder, as in Colab; GitHub is replaced by a folder here."""
    repository, empty = tmp_path / "github" / "you/name", tmp_path / "empty"
    repository.mkdir(parents=True)
    empty.mkdir()
    for file in (NOTEBOOK, ROOT / "helpers.py", ROOT / "README.md"):
        shutil.copy(file, repository)
    github = f'[url "file://{tmp_path}/github/"]\ninsteadOf = https://github.com/\n'
    (tmp_path / "git").write_text(f"[user]\nname = t\nemail = t@t.org\n{github}")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "git"))
    publish = re.search(r"^sed -i .*$", README, re.M)[0]
    for command in (publish, "git init -q -b main", "git add .", "git commit -q -m all"):
        run("bash", "-c", command, folder=repository)
    for file in ("README.md", NOTEBOOK.name):
        text = (repository / file).read_text(encoding="utf-8")
        assert "ORG/REPO" not in text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    (cell,) = (source for source in cells if source.startswith("# @title Find the repository"))
    monkeypatch.chdir(empty)
    with pytest.raises(FileNotFoundError, match="no helpers.py in .*empty: start Jupyter in its"):
        exec(cell, {})  # not in Colab, nothing is cloned
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    for start in (empty, empty, empty / "vitgan"):  # a second session, and the cell run again
        monkeypatch.chdir(start)
        exec(cell, {})
        assert os.getcwd() == str(empty / "vitgan") and os.path.exists("helpers.py")
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    monkeypatch.chdir(tmp_path)  # as in VS Code, whose kernel may start elsewhere
    exec(cell, {"__vsc_ipynb_file__": str(repository / NOTEBOOK.name)})
    assert os.getcwd() == str(repository)
