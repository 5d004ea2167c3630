"""The experiments: each part that is taken away is away, a run leaves a row, the benchmark runs."""

import sys

import pytest
import torch
from conftest import NOTEBOOK, ROOT

import helpers

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
import ablations  # noqa: E402
import benchmark  # noqa: E402

TINY = dict(image_size=16, width=16, heads=2, depth=1, latent_dim=16, batch_size=4, patch_size=4,
            precision="float32")
IMAGES = torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8,
                       generator=torch.Generator().manual_seed(0))


def ablated(part):
    """(definitions without the part, a TrainState of them)."""
    vitgan = helpers.load_definitions(NOTEBOOK)
    _, settings, patch = ablations.PARTS[part]
    patch(vitgan)
    data = helpers.Images(IMAGES, "noise", {})
    chosen, device = TINY | settings | {"latent_dim": 16}, torch.device("cpu")
    config = vitgan.configure(data, device, "smoke", **chosen)[1]
    return vitgan, vitgan.TrainState(config, device)


def norm(layer):
    return torch.linalg.matrix_norm(layer.effective_weight(), 2).item()


CHANGES = {
    "full": lambda v, s: hasattr(s.D.head, "u") and s.D.embed.weight.shape[1] == 3 * 8**2,
    "plain-sn": lambda v, s: norm(s.D.head) == pytest.approx(1, rel=1e-3),
    "no-sn": lambda v, s: not hasattr(s.D.head, "u"),
    "dot": lambda v, s: hasattr(s.D.blocks[0].attention, "key"),
    "no-overlap": lambda v, s: s.D.embed.weight.shape[1] == 3 * 4**2,
    "conv": lambda v, s: s.D.blocks[0].skip.bias is None and not hasattr(s.D, "embed"),
    "no-bcr": lambda v, s: v.train_step(s, IMAGES)["bcr"] == 0,
    "no-augment": lambda v, s: v.train_step(s, IMAGES)["bcr"] == 0 and s.config.augment == "",
    "one-sln": lambda v, s: s.G.blocks[0].norm1 is s.G.blocks[0].norm2,
    "no-equalized": lambda v, s: s.G.mapping.layers[0].scale == 1,
    "no-mapping": lambda v, s: not [*s.G.mapping.parameters()],
    "free-positions": lambda v, s: all(n.positions.table.requires_grad for n in (s.G, s.D)),
    "additive": lambda v, s: s.G.decoder.out.style.weight.shape[0] == 3,
    "linear": lambda v, s: s.G.decoder.weight.shape == (48, 16),
}


@pytest.mark.parametrize("part", ablations.PARTS)
def test_part_is_away_and_the_rest_trains(part):
    vitgan, state = ablated(part)
    assert CHANGES[part](vitgan, state)
    losses = vitgan.train_step(state, IMAGES)
    assert all(value.isfinite() for value in losses.values())


def test_ablation_appends_a_row_for_each_count_and_goes_on(tmp_path):
    words = ["width=16", "heads=2", "--profile", "smoke", "--data", "digits", "--samples", "40",
             "--out", str(tmp_path / "e.csv"), "--parts", "full", "no-bcr"]
    ablations.main([*words, "--images", "32"])
    ablations.main([*words, "--images", "32", "64"])
    rows = ablations.rows_of(tmp_path / "e.csv")
    assert [(r["part"], r["images"]) for r in rows] == [
        ("full", "32"), ("no-bcr", "32"), ("full", "64"), ("no-bcr", "64")]
    assert all(float(r["cfd"]) > 0 for r in rows)
    ablations.main([*words[:4], "--out", words[9], "--plot", str(tmp_path / "parts.png")])
    assert (tmp_path / "parts.png").stat().st_size > 5000


def test_benchmark_compares_with_the_literal_layers(vitgan, capsys):
    benchmark.speeds(vitgan, "smoke", [4], torch.device("cpu"), seconds=0.05)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "smoke, batch 4, train", "smoke, batch 4, sample"]
    assert all("times the literal layers" in line for line in lines)
