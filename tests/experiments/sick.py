"""Short runs that fail, each in its own way, and one that is cured: pictures of section 7.

    python tests/experiments/sick.py --data FOLDER --out assets/sick-runs.png
    python tests/experiments/sick.py --data FOLDER --runs A B C --out assets/sick-puzzle.png

Each run sees some ten thousand images on one thread. `cured` starts like `D wins`, and goes on with
the settings of `healthy` after a third of its images. Curves and samples are kept in a folder, so
that a second call only draws.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402

PROFILE = "cpu"
D_WINS = dict(lr_g=0.0002, bcr=0.0)
RUNS = {  # name: (settings, what one would do)
    "healthy": ({}, "change nothing"),
    "D wins": (D_WINS, "raise bcr, or lr_g"),
    "G outruns D": (dict(lr_d=0.0001), "raise lr_d, or lower lr_g"),
    "attention collapses": (
        dict(lr_g=0.03, lr_d=0.03, qk_norm=False),
        "lower both rates; qk_norm=True",
    ),
    "cured": (D_WINS, "healthy from the line on"),
    "A": (dict(lr_g=0.05), ""),
    "B": (dict(bcr=1000.0), ""),
    "C": (dict(lr_g=0.0001, lr_d=0.0001), ""),
}
SHOWN = ["healthy", "D wins", "G outruns D", "attention collapses", "cured"]


def train(vitgan, config, healthy, images, cured):
    """(a list of entries with losses, SWD and entropy, samples [m, 8, 3, S, S]) of one run."""
    state, z = vitgan.TrainState(config, images.device), vitgan.fixed_noise(config, 512)
    real, history, strips = vitgan.fixed_subset(images, 512), [], []
    while state.images_seen < config.total_images:
        losses = vitgan.train_step(state, images)
        if cured and state.images_seen >= config.total_images / 3:
            state.config = healthy
            state.opt_G.param_groups[0]["lr"] = healthy.lr_g
            state.opt_D.param_groups[0]["lr"] = healthy.lr_d
        if state.images_seen % 1600 == 0:
            samples = vitgan.sample(state.G_ema, z)
            maps = vitgan.attention_maps(state.G_ema, z[:16].to(images.device))
            entry = {name: value.item() for name, value in losses.items()}
            entry |= {"images": state.images_seen, "entropy": min(vitgan.attention_entropy(maps))}
            history.append(entry | {"swd": vitgan.sliced_wasserstein(samples, real)})
            strips.append(samples[:8])
    return history, torch.stack(strips)


def draw(runs, path):
    """A column a run: logits, distance and entropy above, samples from three moments below."""
    fig, axes = plt.subplots(
        4, len(runs), figsize=(2.6 * len(runs), 6.6), height_ratios=[2, 1.5, 1.5, 2.6]
    )
    for column, (name, (history, strips)) in zip(axes.T, runs.items(), strict=True):
        seen = [entry["images"] / 1000 for entry in history]
        for key, label in (("logit_real", "real"), ("logit_fake", "fake")):
            column[0].plot(seen, [entry[key] for entry in history], label=f"D({label})")
        column[1].plot(
            seen, [entry["swd"] for entry in history], color="C2", label="distance (SWD)"
        )
        column[2].plot(seen, [entry["entropy"] for entry in history], color="C4", label="entropy")
        column[2].set_ylim(0, 4.3)
        if name == "cured":
            for ax in column[:3]:
                ax.axvline(seen[-1] / 3, color="gray", linestyle=":")
        column[1].set_ylim(0, 85)
        note = f"\n→ {RUNS[name][1]}" if RUNS[name][1] else ""
        column[0].set_title(name + note, fontsize=9)
        moments = [1, len(strips) // 2, len(strips) - 1]
        column[3].imshow(helpers.image_grid(strips[moments][:, :4].flatten(0, 1), 4))
        column[3].axis("off")
    for ax in axes[:3, 0]:
        ax.legend(fontsize=7)
    for ax in axes[:3].flat:
        ax.tick_params(labelsize=7)
    for ax in axes[2]:
        ax.set_xlabel("thousand images", fontsize=7)
    fig.savefig(path, dpi=80)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--runs", nargs="+", default=SHOWN, choices=RUNS)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sick")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    vitgan, device, runs = helpers.load_definitions(), helpers.pick_device(), {}
    data = helpers.load_images(32, args.data)
    healthy = vitgan.configure(data, device, PROFILE, total_images=args.images, compile=False)[1]
    for name in args.runs:
        path = args.folder / f"{name.replace(' ', '-')}.pt"
        if not path.exists():
            config = dataclasses.replace(healthy, **RUNS[name][0])
            run = train(vitgan, config, healthy, data.pixels.to(device), name == "cured")
            torch.save(run, path)
            print(name, json.dumps(run[0][-1]), flush=True)
        runs[name] = torch.load(path, weights_only=True)
    if args.out:
        draw(runs, args.out)


if __name__ == "__main__":
    main()
