"""Fixtures: the notebook's own definitions, tiny settings, tiny images; and no network."""

import os
import signal
import socket
import sys
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest
import torch
from hypothesis import settings

import helpers

NOTEBOOK = ROOT / "ViTGAN_CIFAR10.ipynb"
TINY = dict(image_size=8, width=16, blocks=1, heads=2, latent_dim=8, mapping_layers=2, pool="class", batch_size=4,
            augment="color,translation,cutout,scaling", bcr_real=10.0, bcr_fake=10.0, total_images=24, log_images=8,
            ema_half_life=100, snapshot_minutes=0.0, precision="float32")
VARIANTS = {  # every option that changes what the networks are made of
    "default": {}, "free positions": dict(positions="free"), "mean pool": dict(pool="mean"),
    "whole image": dict(whole_image=True), "two hidden layers": dict(siren_hidden=2),
    "demodulate": dict(demodulate=True), "positive sign": dict(l2_sign=1), "other exponent": dict(l2_exponent=0.5), "no overlap": dict(overlap=0)}
CONV = dict(discriminator="conv")

FAULTS = Counter()

torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", 2))))
settings.register_profile("kit", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("kit")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="inject every fault, not a sample (about 9 minutes)")


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores interrupts, and some tests send one
    config.addinivalue_line("markers", "slow: skipped unless --slow is given")
    config.addinivalue_line("markers", "fault: the test injects one fault; it is survived when the test passes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))


@contextmanager
def count_fault():
    FAULTS["injected"] += 1
    try:
        yield
    except pytest.skip.Exception:
        FAULTS["injected"] -= 1
        raise
    FAULTS["survived"] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with count_fault() if item.get_closest_marker("fault") else nullcontext():
        return (yield)


def pytest_terminal_summary(terminalreporter):
    if FAULTS:
        terminalreporter.write_line(f"faults: {FAULTS['injected']:,} injected, {FAULTS['survived']:,} survived")


@pytest.fixture(scope="session")
def fault():
    """For a block that injects a fault; survived when it ends without an exception."""
    return count_fault


@pytest.fixture(scope="session")
def slow(request):
    """Whether --slow was given."""
    return request.config.getoption("--slow")


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


def tiny_images():
    """32 blurred random pictures, uint8 [32, 3, 8, 8]."""
    noise = torch.rand(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(noise, size=8, mode="bilinear") * 255).to(torch.uint8)


@pytest.fixture(scope="session")
def images():
    return tiny_images()


@pytest.fixture
def new_run(vitgan, make_config, tmp_path):
    """A run at step 0 in a temporary folder, with settings overridden."""
    return lambda **overrides: vitgan.new_run(make_config(**overrides), tmp_path, torch.device("cpu"))


@pytest.fixture
def train(vitgan, make_config, images, tmp_path):
    """Train on the tiny images, quietly, below tmp_path, with settings overridden."""
    return lambda folder="", on_snapshot=None, **overrides: vitgan.train(
        make_config(**overrides), images, tmp_path / folder, on_snapshot, quiet=True)


@pytest.fixture
def float64():
    """Everything in double precision, random numbers included, as finite differences need."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def serve():
    """Answer at a local address, which is returned, by doing with each connection what it is told."""
    opened = []

    def start(behave):
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def accept():
            try:
                while True:
                    opened.append(listener.accept()[0])
                    behave(opened[-1])
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/file"

    yield start
    for one in opened:
        one.close()
