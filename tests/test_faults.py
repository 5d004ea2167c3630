"""Faults injected, one by one: each is survived with nothing lost, or refused in one clear sentence.

    python -m pytest -q --slow tests/test_faults.py

Without --slow a sample of them. Other files have faults, too, marked `fault`; pytest counts all of them at its end.
"""

import contextlib
import gc
import json
import math
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from pathlib import Path

import fault_worker
import helpers
import nbformat
import pytest
import torch
from conftest import NOTEBOOK, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import different, everything

import matplotlib.pyplot as plt

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
