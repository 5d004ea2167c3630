"""Training runs of the testbed (the `tiny` profile's networks), scored by cFD (judge.py); each appends a row to a CSV.

    python tests/experiments/run.py lr_g=0.003 pool=class --data FOLDER --images 96000 256000 --seeds 0 1
    python tests/experiments/run.py overlap=2 lr_g=0.003 lr_d=0.003 --data FOLDER --images 96000 --ablations all

FIELD=VALUE pairs come first and override the profile; --ablations take parts away (ablations.py), whatever they say.
The score is of 10,000 EMA samples; at sizes other than 16 and 32 it stays empty. Nothing is compiled without compile=True.
A strip of samples of each run is kept beside the CSV. A row of evidence.csv is repeated
by `--profile paper`, the pairs in its column `settings`, its ablation, images, seed (and compile=True if `fields` has it).
"""
import argparse
import copy
import csv
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
import helpers  # noqa: E402
import judge  # noqa: E402
from ablations import ABLATIONS  # noqa: E402

NO_RESULT = ("data_dir", "total_images", "max_minutes", "snapshot_minutes", "log_images", "compile", "seed")
RESULTS = "images minutes images_per_s logit_gap swd spread cfd cfd_raw note".split()  # cfd_raw: of G itself, full model only
SAMPLES = 10_000  # scored after each number of images


def settings_of(config):
    """What of `config` shapes a result and differs from the paper's settings, as FIELD=VALUE pairs."""
    paper = type(config)()
    return " ".join(f"{name}={value}" for name, value in vars(config).items()
                    if name not in NO_RESULT and value != getattr(paper, name))


def evidence(path=HERE / "evidence.csv"):
    """The rows of a CSV of experiments, as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def difference(row, config):
    """What a row changes against the settings `config`, in words; "" when nothing."""
    theirs, ours = (dict(pair.split("=") for pair in text.split()) for text in (row["settings"], settings_of(config)))
    paper = type(config)()
    changed = [f"{name}={theirs.get(name, getattr(paper, name))}" for name in theirs | ours if theirs.get(name) != ours.get(name)]
    return ", ".join(changed + [row["note"]] * bool(row["note"]))


def scores(rows, images, label):
    """{label(row): its cFDs, one a seed} of the rows scored after so many images, best mean first."""
    found = {}
    for row in rows:
        if int(row["images"]) == images and row["cfd"]:
            found.setdefault(label(row), []).append(float(row["cfd"]))
    return dict(sorted(found.items(), key=lambda item: sum(item[1]) / len(item[1])))


def score(vitgan, G, config):
    """cFD of samples of G; None at a size for which there is none."""
    if config.image_size in judge.SIZES:
        return round(judge.scores(vitgan.sample(G.eval(), vitgan.fixed_noise(config, SAMPLES, seed=123)))["cfd"], 2)


def append(path, *rows):
    """Add rows, dicts with the same keys, to a CSV, with a header when the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def experiment(args, ablation, seed, folder):
    """Train in `folder` with one part taken away, and append a row for each number of images."""
    vitgan = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    _, settings, patch = ABLATIONS[ablation]
    patch(vitgan)
    chosen = {"compile": False, "max_minutes": 1e6, "seed": seed} | helpers.parse_settings(shlex.join(args.fields)) | settings
    config = vitgan.Config.profile(args.profile, **chosen)
    data = helpers.load_images(config.image_size, args.data or config.data_dir)
    config, images = vitgan.Config.profile(args.profile, data, **chosen), data.pixels.to(helpers.pick_device())
    row = {"date": time.strftime("%Y-%m-%d"), "profile": args.profile, "data": data.name, "ablation": ablation,
           "fields": " ".join(args.fields), "settings": settings_of(config), "seed": config.seed, "threads": torch.get_num_threads()}
    for count in sorted(args.images):  # each goes on from the checkpoint of the one before
        try:
            state = vitgan.train(dataclasses.replace(config, total_images=count), images, folder)
        except FloatingPointError as error:
            append(args.out, row | dict.fromkeys(RESULTS, "") | {"images": count, "note": str(error)})
            return print(error)
        last, samples = state.history[-1], vitgan.sample(state.G_ema, vitgan.fixed_noise(config, 64))
        row |= dict(zip(RESULTS, (
            state.images_seen, round(state.seconds / 60, 2), round(state.images_seen / state.seconds),
            round(last["logit_real"] - last["logit_fake"], 3), round(last["swd"], 2), round(vitgan.batch_std(samples), 3),
            score(vitgan, state.G_ema, config),
            score(vitgan, copy.deepcopy(state.G), config) if ablation == "full" else "", "")))
        append(args.out, row)
        print(json.dumps(row), flush=True)
    strip = args.out.parent / "samples" / ("-".join([ablation, *args.fields, str(config.seed)]).replace("/", "_") + ".png")
    strip.parent.mkdir(exist_ok=True)
    helpers.image_grid(samples[:16], 16, scale=3).save(strip)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of images; default: the profile's")
    parser.add_argument("--images", type=int, nargs="+", default=[96_000], help="score after so many images")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--ablations", nargs="+", default=["full"], choices=[*ABLATIONS, "all"], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments" / "evidence.csv")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_intermixed_args(words)
    for ablation in ABLATIONS if "all" in args.ablations else args.ablations:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory(prefix="vitgan-") as folder:
                experiment(args, ablation, seed, folder)


if __name__ == "__main__":
    main()
