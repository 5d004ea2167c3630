"""The experiments: without a part the losses differ, and stay finite; the benchmark runs."""
import functools
import sys

import pytest
import torch
from conftest import ROOT, TINY, tiny_images

import helpers

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
import ablations  # noqa: E402
import benchmark  # noqa: E402


@functools.cache
def losses_without(part):
    """Of two steps from the same seed with a part taken away."""
    vitgan = helpers.load_definitions()
    _, settings, patch = ablations.PARTS[part]
    patch(vitgan)
    config = vitgan.Config(**TINY | settings | {"latent_dim": TINY["width"]})
    state = vitgan.TrainState(config, torch.device("cpu"))
    return [vitgan.train_step(state, tiny_images())["d_loss"].item() for _ in range(2)]

@pytest.mark.parametrize("part", [*ablations.PARTS][1:])
def test_what_is_left_without_a_part_trains_otherwise(part):
    losses = losses_without(part)
    assert losses != losses_without("full") and torch.tensor(losses).isfinite().all()

def test_benchmark_times_steps_and_samples(vitgan, capsys):
    benchmark.speeds(vitgan, "smoke", [4], torch.device("cpu"), seconds=0.05)
    assert capsys.readouterr().out.count(" images/s") == 2
