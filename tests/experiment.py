"""One training run of the testbed (the `cpu` profile's networks), scored by a judge; appends a row to a CSV.

    python tests/experiment.py --data FOLDER --judge FOLDER_OF_JUDGE --images 96000 --out runs/experiments.csv lr_g=0.003 pool=class

FIELD=VALUE pairs override the profile. The judge is a folder with judge.py (Fréchet distance in the features of a small
CIFAR-10 classifier, printed as JSON); the score, cFD, is of 10,000 EMA samples. Without --judge the column stays empty.
"""

import argparse
import ast
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402


def value(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def fields(pairs):
    """["lr_g=0.003", "pool=class"] as a dict of Python values."""
    return {name: value(text) for name, text in (pair.split("=", 1) for pair in pairs)}


def score(judge, vitgan, run, n=10_000):
    samples = vitgan.sample(run.ema, vitgan.fixed_noise(run.config, n, seed=123))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/samples.npy", samples.numpy())
        out = subprocess.run([sys.executable, Path(judge) / "judge.py", f"{folder}/samples.npy"],
                             check=True, capture_output=True, text=True).stdout
    return json.loads(out)["cfd"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of images; default: CIFAR-10, else digits")
    parser.add_argument("--judge", help="folder that holds judge.py")
    parser.add_argument("--images", type=int, default=96_000)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments.csv")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_args()

    vitgan = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    config = vitgan.Config.profile(args.profile, total_images=args.images, max_minutes=1e6, **fields(args.fields))
    data = helpers.load_images(config.image_size, args.data)
    folder = tempfile.mkdtemp(prefix="vitgan-")
    run = vitgan.train(config, data.pixels.to(helpers.pick_device()), folder)
    last = run.history[-1]
    row = {"date": time.strftime("%Y-%m-%d"), "profile": args.profile, "data": data.name, "seed": config.seed,
           "fields": " ".join(args.fields), "images": run.images_seen, "minutes": round(run.seconds / 60, 2),
           "logit_gap": round(last["logit_real"] - last["logit_fake"], 3), "swd": round(last["swd"], 2),
           "cfd": score(args.judge, vitgan, run) if args.judge else "", "samples": folder}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    new = not args.out.exists()
    with open(args.out, "a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
