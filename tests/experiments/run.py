"""Training runs of the testbed (the `cpu` profile's networks), scored by a judge; appends a row for each to a CSV.

    python tests/experiments/run.py lr_g=0.003 pool=class --data FOLDER --judge FOLDER_OF_JUDGE --images 96000 256000 --seeds 0 1
    python tests/experiments/run.py overlap=2 lr_g=0.003 lr_d=0.003 --data FOLDER --judge FOLDER_OF_JUDGE --images 96000 --seeds 0 1 --ablations all

FIELD=VALUE pairs, which come first, override the profile; --ablations take parts away (ablations.py), whatever the pairs say. The judge
is a folder with judge.py (Fréchet distance in the features of a small CIFAR-10 classifier, printed as JSON); the score, cFD, is of 10,000
EMA samples at each of the image counts. Without --judge it stays empty. Runs are not compiled unless told compile=True. A strip of samples
of each run, and its logged losses and logits (curves.csv), are kept beside the CSV.
"""

import argparse
import copy
import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
import helpers  # noqa: E402
from ablations import ABLATIONS  # noqa: E402


def settings_of(config):
    """What of `config` shapes a result and differs from the paper's settings, as FIELD=VALUE pairs."""
    other = ("data_dir", "total_images", "max_minutes", "snapshot_minutes", "log_images", "compile", "seed", "flip")
    paper = type(config)()
    return " ".join(f"{name}={value}" for name, value in vars(config).items() if name not in other and value != getattr(paper, name))


def evidence(path=HERE / "evidence.csv"):
    """The rows of a CSV of experiments, as dicts of text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def difference(row, config):
    """What a row changes against the settings `config`, in words; "" when nothing."""
    theirs, ours = (dict(pair.split("=") for pair in text.split()) for text in (row["settings"], settings_of(config)))
    paper = type(config)()
    changed = [f"{name}={theirs.get(name, getattr(paper, name))}" for name in theirs | ours if theirs.get(name) != ours.get(name)]
    return ", ".join([*changed, *([row["note"]] if row["note"] else [])])


def scores(rows, images, label):
    """{label(row): its cFDs, one a seed} of the rows scored after so many images, best mean first."""
    found = {}
    for row in rows:
        if int(row["images"]) == images and row["cfd"]:
            found.setdefault(label(row), []).append(float(row["cfd"]))
    return dict(sorted(found.items(), key=lambda item: sum(item[1]) / len(item[1])))


def score(judge, vitgan, G, config, n=10_000):
    samples = vitgan.sample(G.eval(), vitgan.fixed_noise(config, n, seed=123))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/samples.npy", samples.numpy())
        out = subprocess.run([sys.executable, Path(judge) / "judge.py", f"{folder}/samples.npy"],
                             check=True, capture_output=True, text=True).stdout
    return json.loads(out)["cfd"]


def append(path, *rows):
    """Add rows, dicts with the same keys, to a CSV, with a header when the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def curves(run, ablation):
    """The log of a run as rows of curves.csv."""
    who = {"ablation": ablation, "seed": run.config.seed}
    return [who | {name: round(entry[name], 4) for name in LOGGED} for entry in run.history]


def experiment(args, ablation, seed):
    """Train with one part taken away, and append a row for each image count."""
    vitgan = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    _, settings, patch = ABLATIONS[ablation]
    patch(vitgan)
    fixed = {"data_dir": args.data} if args.data else {}
    config, data = vitgan.configure(args.profile, **fixed | {"compile": False, "max_minutes": 1e6, "seed": seed}
                                    | helpers.parse_settings(" ".join(args.fields)) | settings)
    images, folder = data.pixels.to(helpers.pick_device()), tempfile.mkdtemp(prefix="vitgan-")
    row = {"date": time.strftime("%Y-%m-%d"), "profile": args.profile, "data": data.name, "ablation": ablation,
           "fields": " ".join(args.fields), "settings": settings_of(config), "seed": seed, "threads": torch.get_num_threads()}
    for count in sorted(args.images):
        try:
            run = vitgan.train(dataclasses.replace(config, total_images=count), images, folder)
        except FloatingPointError as error:
            append(args.out, row | dict.fromkeys(RESULTS, "") | {"images": count, "note": str(error)})
            print(error)
            return
        last, samples = run.history[-1], vitgan.sample(run.G_ema, vitgan.fixed_noise(config, 64))
        row |= dict(zip(RESULTS, (
            run.images_seen, round(run.seconds / 60, 2), round(run.images_seen / run.seconds),
            round(last["logit_real"] - last["logit_fake"], 3), round(last["swd"], 2), round(vitgan.batch_std(samples), 3),
            score(args.judge, vitgan, run.G_ema, config) if args.judge else "",
            score(args.judge, vitgan, copy.deepcopy(run.G), config) if args.judge and ablation == "full" else "", "")))
        append(args.out, row)
        print(json.dumps(row), flush=True)
    append(args.out.with_name("curves.csv"), *curves(run, ablation))
    name = "-".join([ablation, *args.fields, str(seed)])
    (args.out.parent / "samples").mkdir(exist_ok=True)
    helpers.image_grid(samples[:16], 16, scale=3).save(args.out.parent / "samples" / f"{name}.png")


RESULTS = "images minutes images_per_s logit_gap swd spread cfd cfd_raw note".split()  # cfd_raw: of G itself, not its EMA; for the full model only
LOGGED = "images d_loss g_loss logit_real logit_fake".split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of images; default: CIFAR-10, else digits")
    parser.add_argument("--judge", help="folder that holds judge.py")
    parser.add_argument("--images", type=int, nargs="+", default=[96_000], help="score after so many images")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--ablations", nargs="+", default=["full"], choices=[*ABLATIONS, "all"], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments" / "evidence.csv")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_intermixed_args()
    for ablation in ABLATIONS if "all" in args.ablations else args.ablations:
        for seed in args.seeds:
            experiment(args, ablation, seed)


if __name__ == "__main__":
    main()
