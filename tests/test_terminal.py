"""`python helpers.py`, alone and under torchrun; README's commands and script; the set-up cell."""

import json
import os
import re
import shutil
import sys

from conftest import NOTEBOOK, ROOT, run
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMOKE = ["profile=smoke", "data_dir=digits", "image_size=16", "total_images=64"]


def test_main_trains_goes_on_and_leaves_weights_and_samples(tmp_path, vitgan):
    command = [sys.executable, ROOT / "helpers.py", *SMOKE]
    out, err = run(*command, folder=tmp_path, VITGAN_RUNS="runs")
    folder = tmp_path / re.search("weights and samples: (.*)", out)[1]
    assert vitgan.load_generator(folder / "generator.safetensors")[2]["images seen"] == 64
    assert (folder / "samples-000000064.png").exists() and "images/s" in err
    out, _ = run(*command, "total_images=96", folder=tmp_path, VITGAN_RUNS="runs")
    assert "has seen 64 images; going on from there" in out
    assert (folder / "samples-000000096.png").exists()


def test_torchrun_trains_in_two_processes_and_keeps_one_checkpoint(tmp_path):
    words = re.search(r"`torchrun (.*?) helpers.py .*?`", README)[1].split()
    out, _ = run(sys.executable, "-m", "torch.distributed.run", *words, ROOT / "helpers.py",
                 *SMOKE, folder=tmp_path, VITGAN_RUNS="runs")
    assert out.count("weights and samples") == 1
    assert len([*tmp_path.rglob("checkpoint.pt")]) == 1


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
    publish = re.search(r"^sed -i .*$", README, re.M)[0]
    for command in (publish, "git init -q -b main", "git add .", "git config user.name t",
                    "git config user.email t@t.org", "git commit -q -m all"):
        run("bash", "-c", command, folder=repository)
    for file in ("README.md", NOTEBOOK.name):
        text = (repository / file).read_text(encoding="utf-8")
        assert "ORG/REPO" not in text
    for name, value in {"COUNT": "1", "KEY_0": f"url.file://{tmp_path}/github/.insteadOf",
                        "VALUE_0": "https://github.com/"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    (cell,) = (source for source in cells if source.startswith("#@title Get the repository"))
    for start in (empty, empty, empty / "vitgan"):  # a second session, and the cell run again
        monkeypatch.chdir(start)
        exec(cell, {})
        assert os.getcwd() == str(empty / "vitgan")
    found, _ = run(sys.executable, "-c", "import helpers; print(helpers.__file__)",
                   folder=os.getcwd())
    assert found.strip() == str(empty / "vitgan" / "helpers.py")
