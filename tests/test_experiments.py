"""The experiments: each ablation changes what it says and trains, a run leaves a row, gpu.py sees what is wrong."""

import hashlib
import json
import sys

import pytest
import reference
import torch
from conftest import NOTEBOOK, ROOT

import helpers

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
import ablations  # noqa: E402
import benchmark  # noqa: E402
import gpu  # noqa: E402
import judge  # noqa: E402
import run  # noqa: E402

SMALL = dict(image_size=16, width=16, heads=2, depth=1, latent_dim=16, batch_size=4, precision="float32")
IMAGES = torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ablated(name):
    """(definitions with the ablation, its state on 16x16 images)."""
    vitgan = helpers.load_definitions(NOTEBOOK)
    _, settings, patch = ablations.ABLATIONS[name]
    patch(vitgan)
    return vitgan, vitgan.TrainState(vitgan.Config.profile("smoke", **SMALL | settings), IMAGES)


def l2_when_tied(state):
    """Whether D's attention is L2 attention once its keys are its queries."""
    layer, h = state.D.blocks[0].attention.eval(), torch.randn(1, 16, 16)
    layer.key.load_state_dict(layer.qk.state_dict())
    return torch.allclose(layer(h), reference.l2_self_attention(layer, h), atol=1e-4)


CHANGES = {
    "full": lambda v, s: hasattr(s.D.head, "u") and s.G.decoder.out.demodulate is False,
    "plain-sn": lambda v, s: torch.linalg.matrix_norm(s.D.head.effective_weight(), 2).item() == pytest.approx(1, rel=1e-3),
    "no-sn": lambda v, s: not hasattr(s.D.head, "u"),
    "dot": lambda v, s: not l2_when_tied(s),
    "sqrt-d": lambda v, s: s.D.blocks[0].attention.exponent == 0.5,
    "plus-sign": lambda v, s: v.l2_attention(torch.tensor([[[[0.0], [9.0]]]]), torch.tensor([[[[0.0], [1.0]]]]))[0, 0, 0] > 0.9,
    "untied": lambda v, s: l2_when_tied(s),
    "no-overlap": lambda v, s: s.D.embed.weight.shape[1] == 3 * 4**2,
    "conv": lambda v, s: s.D.blocks[0].skip.bias is None and not hasattr(s.D, "embed"),
    "no-bcr": lambda v, s: "bcr" not in v.train_step(s, IMAGES),
    "no-augment": lambda v, s: "bcr" not in v.train_step(s, IMAGES) and s.config.adversarial_on == "plain",
    "r1": lambda v, s: v.train_step(s, IMAGES)["r1"] > 0,
    "relativistic": lambda v, s: v.discriminator_loss(s.D, *[torch.randn(4, 3, 16, 16)] * 2, s.config)[1].keys() == {
        "d_loss", "logit_real", "logit_fake"},
    "one-sln": lambda v, s: s.G.blocks[0].norm1 is s.G.blocks[0].norm2,
    "no-equalized": lambda v, s: s.G.mapping.layers[0].scale == 1 and s.G.mapping.layers[0].weight.std() < 0.5,
    "no-mapping": lambda v, s: not [*s.G.mapping.parameters()],
    "free-positions": lambda v, s: s.G.positions.table.requires_grad and s.D.positions.table.requires_grad,
    "additive": lambda v, s: s.G.decoder.out.style.weight.shape[0] == 3,
    "linear": lambda v, s: s.G.decoder.weight.shape == (48, 16),
    "two-hidden": lambda v, s: len(s.G.decoder.hidden) == 2,
    "demodulate": lambda v, s: s.G.decoder.hidden[0].demodulate and not s.G.decoder.out.demodulate,
}


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_ablation_trains_and_changes_what_it_says(name):
    vitgan, state = ablated(name)
    before = [p.detach().clone() for network in (state.G, state.D) for p in network.parameters()]
    losses = vitgan.train_step(state, IMAGES)
    assert {"d_loss", "g_loss", "logit_real", "logit_fake"} <= losses.keys() and all(map(torch.isfinite, losses.values()))
    after = [p for network in (state.G, state.D) for p in network.parameters()]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after)) > len(after) / 2
    assert vitgan.sample(state.G_ema, torch.randn(2, 16)).shape == (2, 3, 16, 16)
    assert CHANGES[name](vitgan, state)


def test_minibatch_std_does_not_mix_real_and_fake():
    _, state = ablated("conv")
    real, fake, other = torch.randn(3, 4, 3, 16, 16)
    assert torch.equal(state.D(torch.cat([real, fake]))[:4], state.D(torch.cat([real, other]))[:4])
    h = torch.randn(8, 5, 4, 4)
    expected = torch.stack([(half.var(0, correction=0) + 1e-8).sqrt().mean() for half in h.split(4)])
    torch.testing.assert_close(ablations.minibatch_std(h, 4)[::4, 0, 0, 0], expected)


def test_run_appends_a_row_for_each_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SAMPLES", 300)
    words = "batch_size=8 width=16 --profile smoke --images 16 32 --seeds 3 --ablations no-overlap --out".split()
    run.main([*words, str(tmp_path / "evidence.csv")])
    first, second = run.evidence(tmp_path / "evidence.csv")
    assert list(first) == list(run.evidence()[0]) and (first["images"], second["images"], first["seed"]) == ("16", "32", "3")
    assert first["ablation"] == "no-overlap" and "overlap=0" in first["settings"] and float(first["cfd"]) > 1000
    assert len([*tmp_path.glob("samples/*.png")]) == 1


@pytest.mark.parametrize("size, expected", [(16, 5759.48), (32, 12204.27)])  # by the program that made the references
def test_judge_scores_as_it_always_did(size, expected):
    noise = torch.randint(256, (200, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = noise.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    assert judge.scores(tiles)["cfd"] == pytest.approx(expected, rel=1e-3)


def test_judge_refuses_what_it_has_no_reference_for_and_its_card_names_its_file():
    for images in (torch.zeros(2, 3, 24, 24, dtype=torch.uint8), torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, 3)):
        with pytest.raises(ValueError, match="expected uint8"):
            judge.scores(images)
    assert hashlib.sha256(judge.WEIGHTS.read_bytes()).hexdigest() in judge.WEIGHTS.with_suffix(".md").read_text("utf-8")


def test_gpu_passes_its_checks_and_writes_them(tmp_path):
    assert not gpu.main(["--small", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    speed = found["speed"]["speed of smoke"]
    assert len(found["checks"]) >= 7 and not found["skipped"] and speed["attention"]["apart"] < 1e-4
    assert [row["code"] for row in speed["rows"]] == ["literal", "notebook", "notebook"]
    assert speed["rows"][0]["share_of_peak"] is None and 0 < speed["rows"][1]["share_of_peak"] <= 1
    assert not gpu.main(["--small", "--limit", "0", "--out", str(tmp_path / "gpu.json")])
    assert len(json.loads((tmp_path / "gpu.json").read_text())["skipped"]) >= 7


def test_gpu_sees_what_is_wrong(tmp_path, monkeypatch):
    broken = helpers.load_definitions(NOTEBOOK)
    broken.grow = lambda state: state.build(grown=True)
    monkeypatch.setattr(gpu, "checks", lambda *_: [("a", 0.0, lambda: gpu.grown_equals_small(broken, torch.device("cpu"))),
                                                   ("b", 0.0, lambda: 1 / 0), ("c", 0.0, lambda: float("nan"))])
    monkeypatch.setattr(gpu, "speed", lambda *_: broken.no_such_name)
    assert gpu.main(["--small", "--out", str(tmp_path / "gpu.json")])
    checks = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert len(checks) == 4 and not any(check["ok"] for check in checks) and "ZeroDivisionError" in checks[1]["note"]


def test_gpu_trains_a_profile_and_scores_its_snapshots(tmp_path):
    (tmp_path / "cifar").mkdir()
    for i, image in enumerate(helpers.photo_crops(8, 16)):
        helpers.image_grid(image[None]).save(tmp_path / "cifar" / f"{i}.png")
    assert not gpu.main(f"--train smoke --minutes 0.01 --data {tmp_path / 'cifar'} --out {tmp_path / 'gpu.json'}".split())
    last = json.loads((tmp_path / "gpu.json").read_text())["curve"][-1]
    assert last["cfd"] > 1000 and last["size"] == 16 and (tmp_path / "gpu-smoke" / "generator.safetensors").exists()


def test_the_largest_batch_follows_from_two_measured_ones():
    rows = [{"batch": batch, "memory_mib": 1024 + 8 * batch} for batch in (8, 64, 512)]
    assert gpu.batch_that_fits(rows, 16) == (15 - 1) * 128


def test_every_row_of_the_evidence_can_be_repeated(vitgan):
    for row in run.evidence():
        for profile, fields in (("paper", row["settings"]), (row["profile"], row["fields"])):
            again = vitgan.Config.profile(profile, **helpers.parse_settings(fields) | ablations.ABLATIONS[row["ablation"]][1])
            assert run.settings_of(again) == row["settings"] and not run.difference(row | {"note": ""}, again)
