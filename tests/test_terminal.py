"""`python helpers.py`, alone and under torchrun, and the README's scripts."""

import os
import re
import subprocess
import sys

import pytest
from conftest import NOTEBOOK, ROOT
from PIL import Image

SNIPPETS = re.findall("^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"),
                      re.M | re.S)
SMOKE = ["profile=smoke", "data_dir=digits", "image_size=16", "total_images=64"]


def helpers_command(words, folder, launch=(), **environment):
    return subprocess.run(
        [sys.executable, *launch, ROOT / "helpers.py", *words], cwd=folder, capture_output=True,
        text=True, timeout=240, env={**os.environ, "VITGAN_RUNS": "runs", "OMP_NUM_THREADS": "1",
                                     "CUDA_VISIBLE_DEVICES": "", **environment})


def test_main_trains_goes_on_and_leaves_weights_and_samples(tmp_path, vitgan):
    done = helpers_command(SMOKE, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / re.search("weights and samples: (.*)", done.stdout)[1]
    assert vitgan.load_generator(folder / "generator.safetensors")[2]["images seen"] == 64
    assert (folder / "samples-000000064.png").exists() and "images/s" in done.stderr
    done = helpers_command([*SMOKE[:3], "total_images=96"], tmp_path)
    assert "has seen 64 images; going on from there" in done.stdout
    assert (folder / "samples-000000096.png").exists()


@pytest.mark.parametrize("words, sentence", [
    (["lr_gg=0.1"], "lr_gg='0.1': Unexpected keyword argument"), (["fast"], "'fast' is no setting"),
    (["profile=colb"], "profile='colb': expected auto, paper, colab, cpu, smoke"),
    (["data_dir=missing"], "data_dir='missing' is not there; expected a folder of images.")])
def test_main_says_what_is_wrong_and_what_it_expects(tmp_path, words, sentence):
    done = helpers_command(["data_dir=digits", *words], tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(sentence) and "NAME=VALUE" in done.stderr
    assert "Traceback" not in done.stderr


def test_torchrun_trains_in_two_processes_and_keeps_one_checkpoint(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = helpers_command(SMOKE, tmp_path, launch)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("weights and samples") == 1
    assert len([*tmp_path.rglob("checkpoint.pt")]) == 1


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_readme_snippets_end_in_a_picture(snippet, tmp_path):
    for path in (NOTEBOOK, ROOT / "helpers.py", ROOT / "assets"):
        (tmp_path / path.name).symlink_to(path)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert SNIPPETS and all(Image.open(p).size[0] > 30 for p in tmp_path.glob("*.png"))
    assert [*tmp_path.glob("*.png")]
