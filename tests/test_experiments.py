"""The experiments: each part that is taken away is away, a run leaves a row, the benchmark runs."""

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


def test_ablation_appends_a_row_for_each_count_and_goes_on(tmp_path):
    words = ["width=16", "heads=2", "--profile", "smoke", "--data", "digits", "--samples", "40",
             "--out", str(tmp_path / "e.csv"), "--parts", "full", "no-bcr"]
    ablations.main([*words, "--images", "32"])
    ablations.main([*words, "--images", "32", "64"])
    rows = ablations.rows_of(tmp_path / "e.csv")
    assert [(r["part"], r["images"]) for r in rows] == [
        ("full", "32"), ("no-bcr", "32"), ("full", "64"), ("no-bcr", "64")]
    assert all(float(r["cfd"]) > 0 for r in rows)
    ablations.plot(rows, tmp_path / "parts.png")
    assert (tmp_path / "parts.png").stat().st_size > 5000


def test_benchmark_compares_with_the_literal_layers(vitgan, capsys):
    benchmark.speeds(vitgan, "smoke", [4], torch.device("cpu"), seconds=0.05)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "smoke, batch 4, train", "smoke, batch 4, sample"]
    assert all("times the literal layers" in line for line in lines)
