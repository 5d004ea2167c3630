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
import sick  # noqa: E402

MENDED = dict(overlap_g=1, qk_norm=True, patch_size_g=2, latent_dim=TINY["width"])


@functools.cache
def losses_without(part):
    """Of two steps from the same seed with a part taken away."""
    vitgan = helpers.load_definitions()
    _, settings, patch = ablations.PARTS[part]
    patch(vitgan)
    size = 32 if part == "dcgan" else 8
    images = tiny_images().repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    config = vitgan.Config(**TINY | MENDED | settings | {"image_size": size})
    state = vitgan.TrainState(config, torch.device("cpu"))
    return [vitgan.train_step(state, images)["d_loss"].item() for _ in range(2)]


@pytest.mark.parametrize("part", [*ablations.PARTS][1:])
def test_what_is_left_without_a_part_trains_otherwise(part):
    losses = losses_without(part)
    assert losses != losses_without("full") and torch.tensor(losses).isfinite().all()


def test_a_part_is_important_only_beyond_all_scores_and_by_a_margin():
    full = [1000.0, 1100.0]
    assert ablations.verdict([1300.0, 1400.0], full) == "important"
    assert ablations.verdict([800.0, 850.0], full) == "important"
    for values in ([1090.0, 2000.0], [1110.0, 1120.0], [900.0, 1300.0]):
        assert ablations.verdict(values, full) == "not shown by this"


def test_benchmark_times_each_format_compiled_and_not(capsys):
    benchmark.compare("smoke", 4, torch.device("cpu"), seconds=0.05, formats=["float32"])
    assert capsys.readouterr().out.count(" images/s") == 2


def test_sick_runs_are_trained_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sick, "PROFILE", "smoke")
    words = ["--data", "digits", "--images", "3200", "--folder", str(tmp_path)]
    sick.main([*words, "--runs", "healthy", "cured", "--out", str(tmp_path / "sick.png")])
    assert (tmp_path / "sick.png").exists()
