"""Fixtures: the notebook's own definitions, tiny settings, tiny images, a device."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

import helpers  # noqa: E402

NOTEBOOK = ROOT / "ViTGAN_CIFAR10.ipynb"
CELLS, heading = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"], ""
for cell in CELLS:  # each with the number of its section; of several headings in it, the last
    cell["text"] = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        heading = ([heading] + re.findall(r"^##+ (\S+?)\.? ", cell["text"], re.M))[-1]
    cell["section"] = heading
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
for cell in CODE:  # is there nothing else in it?
    cell["defines"] = all(map(helpers.is_definition, ast.parse(cell["text"]).body))
MARKDOWN = "\n\n".join(cell["text"] for cell in CELLS if cell["cell_type"] == "markdown")

NETWORKS = dict(image_size=8, patch_size_g=4, patch_size_d=4, overlap_d=2, width=16, depth=1)
NETWORKS |= dict(heads=2, latent_dim=8, mapping_layers=2)
TINY = dict(NETWORKS, augment="color,translation,cutout,scaling", bcr=10.0, batch_size=4)
TINY |= dict(total_images=24, ema_half_life=100, precision="float32")

torch.set_num_threads(1)  # sums in one order, and small ones are not slower
settings.register_profile("kit", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("kit")


def tiny_images():
    """32 blurred random pictures, uint8 [32, 3, 8, 8]."""
    noise = torch.rand(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(noise, size=8, mode="bilinear") * 255).to(torch.uint8)


def run(*command, folder=ROOT, **environment):
    """(standard output, standard error) of a command on the CPU that must succeed."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout, done.stderr


@pytest.fixture(scope="session")
def vitgan():
    """The module made of the notebook's definitions."""
    return helpers.load_definitions(NOTEBOOK)


@pytest.fixture(scope="session")
def device():
    """The best device here, so that on a machine with a GPU these tests are the GPU's."""
    return helpers.pick_device()


@pytest.fixture(scope="session")
def make_config(vitgan):
    return lambda **overrides: vitgan.Config(**{**TINY, **overrides})


@pytest.fixture(scope="session")
def images(device):
    return tiny_images().to(device)


@pytest.fixture
def kit(tmp_path):
    """A folder with links to what a user needs, tests not among it."""
    for path in (NOTEBOOK, ROOT / "helpers.py", ROOT / "assets"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def train(vitgan, make_config, images, tmp_path):
    """Train on the tiny images below tmp_path, with settings overridden; logs every second step."""
    return lambda folder="run", **overrides: vitgan.train(
        make_config(**overrides), images, tmp_path / folder, log_steps=2
    )


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)
