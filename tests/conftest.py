"""Fixtures: the notebook's own definitions, tiny settings, tiny images; and no network."""

import os
import signal
import socket
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest
import torch
from hypothesis import settings

import helpers

NOTEBOOK = ROOT / "ViTGAN_CIFAR10.ipynb"
TINY = dict(image_size=8, width=16, depth=1, heads=2, latent_dim=8, mapping_layers=2, pool="class", batch_size=4, overlap=2,
            augment="color,translation,cutout,scaling", adversarial_on="augmented", bcr=10.0, total_images=24, log_images=8,
            ema_half_life=100, snapshot_minutes=0.0, precision="float32")
VARIANTS = {  # every option that changes what the networks are made of
    "default": {}, "mean pool": dict(pool="mean"), "other exponent": dict(l2_exponent=1.0), "no overlap": dict(overlap=0)}

torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", 2))))
settings.register_profile("kit", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("kit")


def pytest_configure():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores interrupts


def tiny_images():
    """32 blurred random pictures, uint8 [32, 3, 8, 8]."""
    noise = torch.rand(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(noise, size=8, mode="bilinear") * 255).to(torch.uint8)


@pytest.fixture(scope="session")
def vitgan():
    """The module made of the notebook's cells tagged `definition`."""
    return helpers.load_definitions(NOTEBOOK)


@pytest.fixture(scope="session")
def make_config(vitgan):
    return lambda **overrides: vitgan.Config.profile("smoke", **{**TINY, **overrides})


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture(scope="session")
def images():
    return tiny_images()


@pytest.fixture
def new_state(vitgan, make_config, images):
    """A TrainState at step 0, with settings overridden."""
    return lambda **overrides: vitgan.TrainState(make_config(**overrides), images)


@pytest.fixture
def train(vitgan, make_config, images, tmp_path):
    """Train on the tiny images below tmp_path, with settings overridden."""
    return lambda folder="run", on_snapshot=lambda state, samples: None, **overrides: vitgan.train(
        make_config(**overrides), images, tmp_path / folder, on_snapshot)


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail a test that talks to anything but this machine."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
