"""Take a part away from a profile, train, score: one row of a CSV for each number of images.

    python tests/experiments/ablations.py --data FOLDER --parts full no-bcr --seeds 0 1
    python tests/experiments/ablations.py --data FOLDER --parts dcgan --images 9999999 --minutes 17
    python tests/experiments/ablations.py --plot parts.png --out tests/experiments/evidence.csv

FIELD=VALUE pairs come first. A run that was stopped goes on when it is started again, and rows that
the CSV has already are skipped. cFD is of 10,000 samples, precision, recall and coverage of 3,000,
SWD of 2,000. Eight samples of each row lie in a folder beside the CSV. --plot prints a verdict on
each part: *important* if every cFD lies beyond every cFD of the full model and the means are 15%
apart, else *not shown by this*.
"""

import argparse
import copy
import csv
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
from parts import PARTS  # noqa: E402, I001

import helpers  # noqa: E402


def rows_of(path):
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path, row):
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def scores(vitgan, G, config, images):
    """(the scores of a row, 10,000 samples)."""
    samples = vitgan.sample(G, vitgan.fixed_noise(config, 10_000, seed=123))
    real = vitgan.fixed_subset(images, 3000)
    of_real, of_samples = vitgan.features(real), vitgan.features(samples)
    found = vitgan.precision_recall_coverage(of_real, of_samples[:3000])
    found["swd"] = vitgan.sliced_wasserstein(samples[:2000], real[:2000])
    found = {name: round(value, 3) for name, value in found.items()}
    return found | {"cfd": round(vitgan.cfd(of_samples), 1)}, samples


def experiment(args, part, seed):
    """Train with one part taken away, and append a row for each number of images."""
    vitgan, device = helpers.load_definitions(), helpers.pick_device()
    what, settings, patch = PARTS[part]
    patch(vitgan)
    data = helpers.load_images(32, args.data)
    named = " ".join([args.profile, *args.fields])
    chosen = {"max_minutes": args.minutes, "seed": seed}
    chosen |= helpers.parse_settings(" ".join(args.fields)) | settings
    done = {(r["part"], r["settings"], r["seed"], r["limit"]) for r in rows_of(args.out)}
    folder = args.out.parent / "-".join([part, *named.split(), str(seed)]).replace("/", "_")
    for count in sorted(args.images):
        if (part, named, str(seed), str(count)) in done:
            continue
        config = vitgan.configure(data, device, args.profile, **chosen, total_images=count)[1]
        row = {"date": time.strftime("%Y-%m-%d"), "part": part, "settings": named, "seed": seed}
        row |= dict.fromkeys(COLUMNS, "") | {"limit": count}
        try:
            state = vitgan.train(config, data.pixels.to(device), folder)
        except FloatingPointError as error:
            print(f"{what}, seed {seed}: {error}")
            return append(args.out, row)  # without scores
        found, samples = scores(vitgan, state.G_ema, config, data.pixels)
        last = state.history[-1]
        row |= found | {
            "images": state.images_seen,
            "minutes": round(state.seconds / 60, 2),
            "d_loss": round(last["d_loss"], 3),
            "logit_gap": round(last["logit_real"] - last["logit_fake"], 3),
        }
        if part == "full":
            now = scores(vitgan, copy.deepcopy(state.G).eval(), config, data.pixels)[0]
            row["cfd_without_ema"] = now["cfd"]
        append(args.out, row)
        strip = helpers.image_grid(samples[:8], 8)
        (args.out.parent / "samples").mkdir(exist_ok=True)
        strip.save(args.out.parent / "samples" / f"{folder.name}-{count}.png")


COLUMNS = "limit images minutes d_loss logit_gap swd precision recall coverage cfd cfd_without_ema"
COLUMNS = COLUMNS.split()


def verdict(values, full):
    """What two lists of scores show, by the criterion in the docstring above."""
    beyond = min(values) > max(full) or max(values) < min(full)
    ratio = sum(values) / len(values) / (sum(full) / len(full))
    return "important" if beyond and not 1 / 1.15 < ratio < 1.15 else "not shown by this"


def plot(rows, path, samples):
    """For each part a dot per seed and eight samples; prints the verdicts."""
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["cfd"]]
    limit = max((row["limit"] for row in rows if row["part"] == "full"), key=int, default=None)
    rows = [row for row in rows if row["limit"] == limit or row["part"] == "dcgan"]
    found = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    found = {PARTS[part][0]: found_rows for part, found_rows in found.items() if found_rows}
    if PARTS["full"][0] not in found:
        sys.exit("no rows of the full model with these settings")
    values = {what: [float(row["cfd"]) for row in group] for what, group in found.items()}
    full_rows = found[PARTS["full"][0]]
    values["no average of G's weights"] = [float(row["cfd_without_ema"]) for row in full_rows]
    order = sorted(values, key=lambda what: sum(values[what]) / len(values[what]))
    full = values[PARTS["full"][0]]
    fig, (ax, pictures) = plt.subplots(
        1, 2, figsize=(11, 0.42 * len(order) + 0.8), sharey=True, width_ratios=[1.2, 1]
    )
    for y, what in enumerate(order):
        color = "#c53030" if what == PARTS["full"][0] else "#2b6cb0"
        ax.plot(values[what], [y] * len(values[what]), "o-", color=color)
        text = f"{what}: {verdict(values[what], full)}" if values[what] is not full else what
        print(text, values[what])
        if what in found:
            row = found[what][0]
            name = "-".join([row["part"], *row["settings"].split(), row["seed"], row["limit"]])
            pictures.imshow(plt.imread(samples / f"{name}.png"), extent=(0, 8, y + 0.47, y - 0.47))
    ax.axvspan(min(full), max(full), color="#c53030", alpha=0.15)
    ax.set_yticks(range(len(order)), order, fontsize=9)
    ax.set(xscale="log", xlabel=f"cFD after {int(limit):,} images, one dot per seed")
    ticks = [t for t in (500, 700, 1000, 1400, 2000, 3000, 5000, 10000) if t > 0.9 * min(full)]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    pictures.set(aspect="auto", xticks=[], xlim=(0, 8), ylim=(len(order) - 0.5, -0.5))
    pictures.spines[:].set_visible(False)
    fig.savefig(path, bbox_inches="tight", dpi=100)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, nargs="+", default=[200_000])
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", default=["full"], choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments" / "evidence.csv")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_intermixed_args(words)
    if args.plot:
        wanted = " ".join([args.profile, *args.fields])
        rows = [row for row in rows_of(args.out) if row["settings"] == wanted]
        return plot(rows, args.plot, args.out.parent / "samples")
    torch.set_num_threads(1)
    for part in args.parts:
        for seed in args.seeds:
            experiment(args, part, seed)


if __name__ == "__main__":
    main()
