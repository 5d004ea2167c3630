"""The evidence: how rows are written, compared and read."""

import subprocess
import sys

import experiment
import pytest
from ablations import ABLATIONS
from conftest import ROOT


def row(config, **changes):
    return {"ablation": "full", "images": "96000", "cfd": "", "note": "", "settings": experiment.settings_of(config), **changes}


def test_settings_name_what_differs_from_the_paper_and_shapes_a_result(vitgan):
    assert experiment.settings_of(vitgan.Config()) == ""
    assert experiment.settings_of(vitgan.Config(width=192, seed=3, compile=True, total_images=5)) == "width=192"


def test_differences_are_told_both_ways_and_with_the_note(vitgan):
    ours, theirs = vitgan.Config.profile("cpu"), vitgan.Config.profile("cpu", lr_g=0.002, siren_hidden=2)
    assert experiment.difference(row(ours), ours) == ""
    assert set(experiment.difference(row(theirs, note="why"), ours).split(", ")) == {"lr_g=0.002", "siren_hidden=2", "why"}


def test_scores_are_grouped_and_sorted_by_their_mean():
    rows = [{"images": "96000", "cfd": cfd, "ablation": name} for name, cfd in (("a", "3"), ("b", "1"), ("a", "2"), ("c", ""))]
    rows.append({"images": "64000", "cfd": "0", "ablation": "a"})
    assert list(experiment.scores(rows, 96_000, lambda row: row["ablation"]).items()) == [("b", [1.0]), ("a", [3.0, 2.0])]


def test_every_row_of_the_evidence_can_be_read():
    rows = experiment.evidence()
    assert len(rows) > 100 and {row["ablation"] for row in rows} <= {*ABLATIONS}
    for one in rows:
        assert int(one["images"]) > 0 and (float(one["cfd"]) > 0 if one["cfd"] else one["note"])


def test_a_run_leaves_rows_a_strip_and_curves(tmp_path, image_folder):
    command = [sys.executable, "tests/experiment.py", "overlap=2", "width=16", "blocks=1", "heads=2", "latent_dim=16", "--data", image_folder, "--images", "64",
               "96", "--seeds", "0", "--profile", "smoke", "--ablations", "full", "no-overlap", "--out", tmp_path / "evidence.csv"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    rows = experiment.evidence(tmp_path / "evidence.csv")
    assert [(r["ablation"], r["images"], r["cfd"]) for r in rows] == [(a, n, "") for a in ("full", "no-overlap") for n in ("64", "96")]
    assert "width=16" in rows[0]["settings"] and [r["settings"].count("overlap=0") for r in rows] == [0, 0, 1, 1]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    curves = experiment.evidence(tmp_path / "curves.csv")
    assert {r["ablation"] for r in curves} == {"full", "no-overlap"} and curves[-1]["images"] == "96" and float(curves[-1]["d_loss"]) > 0


@pytest.fixture
def image_folder(tmp_path, images):
    import helpers

    for i, image in enumerate(images[:8]):
        helpers.save_png(tmp_path / "images" / f"{i}.png", image[None], 1)
    return tmp_path / "images"
