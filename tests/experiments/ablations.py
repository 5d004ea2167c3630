"""Take a part away from a profile, train, score: one row of a CSV for each number of images.

    python tests/experiments/ablations.py --data FOLDER --parts full no-bcr --seeds 0 1
    python tests/experiments/ablations.py bcr=10.0 --data FOLDER --images 200000
    python tests/experiments/ablations.py --plot parts.png --out tests/experiments/evidence.csv

FIELD=VALUE pairs come first. A run that was stopped goes on when it is started again, and rows
that the CSV has already are skipped. Scores are cFD of 10,000 samples. evidence.csv was made with
`--parts PART --seeds SEED --images 200000` and one thread, on an AMD EPYC (Zen 5) in bfloat16.
`one-sln`, `no-mapping`, `no-bcr`, and `full` with and without `bcr=10.0` ran on a Xeon without AMX
in float32. The rows of `colab` took two threads of an AMX Xeon, in bfloat16, with `compile=True
--profile colab --images 100000 200000 300000 400000 500000 600000`. The images are CIFAR-10
re-encoded as JPEG. Some minutes include other work on the core, or a pause.
"""
import argparse
import copy
import csv
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402


def plain_spectral_norm(vitgan):
    class SNLinear(vitgan.ISNLinear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.sigma_init.fill_(1.0)

    vitgan.ISNLinear = SNLinear


def dot_product(vitgan):
    class DotAttention(vitgan.L2SelfAttention):
        """Keys of their own, and products for distances."""

        def __init__(self, width, heads):
            super().__init__(width, heads)
            self.key = vitgan.ISNLinear(width, width)

        def forward(self, h):
            q, k, v = (vitgan.rearrange(layer(h), "b n (h d) -> b h n d", h=self.heads)
                       for layer in (self.qk, self.key, self.value))
            heads = vitgan.attention(q, k, v, scale=q.shape[-1] ** -0.5)
            return self.out(vitgan.rearrange(heads, "b h n d -> b n (h d)"))

    vitgan.L2SelfAttention = DotAttention


def one_sln(vitgan):
    class SharedNormBlock(vitgan.GeneratorBlock):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.norm2 = self.norm1

    vitgan.GeneratorBlock = SharedNormBlock


def no_equalized_rate(vitgan):
    """Weights stored at the size they are used with, so that Adam moves all of them alike."""
    equalized = vitgan.EqualizedLinear.__init__

    def unscaled(self, *args, **kwargs):
        equalized(self, *args, **kwargs)
        with torch.no_grad():
            self.weight.mul_(self.scale)
            self.bias.mul_(self.lr_mult)
        self.scale = self.lr_mult = 1.0

    vitgan.EqualizedLinear.__init__ = unscaled


def no_mapping(vitgan):
    class Normalized(vitgan.MappingNetwork):
        def __init__(self, latent_dim, width, layers):
            super().__init__(width, width, 0)
            if latent_dim != width:
                raise ValueError(f"latent_dim={latent_dim} must be width={width}")

    vitgan.MappingNetwork = Normalized


class SineTable(nn.Module):
    """The post's positions: the sine of a free table, [N, D]."""

    def __init__(self, config, positions):
        super().__init__()
        self.table = nn.Parameter(torch.randn(len(positions.coords), config.width))

    def forward(self):
        return torch.sin(self.table)


def replaced(network, name, build):
    """A subclass of a network whose part `name` is build(config, that part)."""
    class Replaced(network):
        def __init__(self, config):
            super().__init__(config)
            setattr(self, name, build(config, getattr(self, name)))

    return Replaced


def free_positions(vitgan):
    for name in ("Generator", "Discriminator"):
        setattr(vitgan, name, replaced(getattr(vitgan, name), "positions", SineTable))


def additive_decoder(vitgan):
    """Every layer adds A y to its input's product instead of scaling W's columns by it."""
    class AdditiveLinear(vitgan.ModulatedLinear):
        def __init__(self, in_features, out_features, y_dim):
            super().__init__(in_features, out_features, y_dim)
            self.style = vitgan.EqualizedLinear(y_dim, out_features, weight_init=3**-0.5)

        def forward(self, x, y):
            return self.linear(x) + self.style(y)[:, None]

    vitgan.ModulatedLinear = AdditiveLinear


class EqualizedConv(nn.Module):
    """Convolution by W / sqrt(fan_in) with W ~ N(0, 1): [B, C, S, S] -> [B, C_out, S, S]."""

    def __init__(self, in_channels, out_channels, side):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = 1 / math.sqrt(in_channels * side**2)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, padding="same")


def leaky(x):
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ResidualDown(nn.Module):
    """Two convolutions beside a short cut: [B, C, S, S] -> [B, C, S/2, S/2]."""

    def __init__(self, channels):
        super().__init__()
        self.first = EqualizedConv(channels, channels, 3)
        self.second = EqualizedConv(channels, channels, 3)
        self.skip = EqualizedConv(channels, channels, 1)

    def forward(self, x):
        h = leaky(self.second(F.avg_pool2d(leaky(self.first(x)), 2)))
        return (h + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


def convolutional(vitgan):
    class ConvDiscriminator(nn.Module):
        """Images [B, 3, S, S], S a power of 2 -> logits [B]; half of config.width as channels."""

        def __init__(self, config):
            super().__init__()
            c, halvings = config.width // 2, int(math.log2(config.image_size / 4))
            self.from_rgb = EqualizedConv(3, c, 1)
            self.blocks = nn.Sequential(*(ResidualDown(c) for _ in range(halvings)))
            self.hidden, self.head = vitgan.EqualizedLinear(c * 16, c), vitgan.EqualizedLinear(c, 1)

        def forward(self, x):
            h = self.blocks(leaky(self.from_rgb(x)))  # [B, C, 4, 4]
            return self.head(leaky(self.hidden(h.flatten(1)))).squeeze(1)

    vitgan.Discriminator = ConvDiscriminator


def nothing(vitgan):
    pass


PARTS = {  # name: (what it does, settings, a function that patches the notebook's definitions)
    "full": ("the full model", {}, nothing),
    "no-equalized": ("no equalized learning rate", {}, no_equalized_rate),
    "one-sln": ("one SLN per block", {}, one_sln),
    "no-mapping": ("no mapping network", {"latent_dim": 128}, no_mapping),
    "free-positions": ("a table of positions", {}, free_positions),
    "additive": ("styles added, not multiplied", {}, additive_decoder),
    "plain-sn": ("plain spectral normalization", {}, plain_spectral_norm),
    "dot": ("dot-product attention in D", {}, dot_product),
    "no-overlap": ("no overlap of D's patches", {"overlap": 0}, nothing),
    "no-bcr": ("no bCR", {"bcr": 0.0}, nothing),
    "no-augment": ("no augmentation, hence no bCR", {"augment": "", "bcr": 0.0}, nothing),
    "conv": ("a convolutional discriminator", {}, convolutional),
}


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


def experiment(args, part, seed):
    """Train with one part taken away, and append a row for each number of images."""
    vitgan, device = helpers.load_definitions(), helpers.pick_device()
    what, settings, patch = PARTS[part]
    patch(vitgan)
    data = helpers.load_images(32, args.data)
    named = " ".join([args.profile, *args.fields])
    asked = {"max_minutes": 1e6, "seed": seed} | helpers.parse_settings(" ".join(args.fields))
    asked |= settings  # the part is away, whatever the fields say
    done = [(r["part"], r["settings"], r["seed"], int(r["images"])) for r in rows_of(args.out)]
    folder = args.out.parent / "-".join([part, *named.split(), str(seed)]).replace("/", "_")
    for count in sorted(args.images):
        config = vitgan.configure(data, device, args.profile, **asked, total_images=count)[1]
        reached = -(-count // config.batch_size) * config.batch_size
        if (part, named, str(seed), reached) in done:
            continue
        row = {"date": time.strftime("%Y-%m-%d"), "part": part, "settings": named, "seed": seed,
               "images": reached, "minutes": "", "images_per_s": "", "logit_gap": "",
               "diversity": "", "cfd": "", "cfd_without_ema": ""}
        try:
            state = vitgan.train(config, data.pixels.to(device), folder)
        except FloatingPointError as error:
            print(f"{what}, seed {seed}: {error}")
            return append(args.out, row)  # without scores
        if state.images_seen > reached:
            continue  # an earlier run has gone further
        z, last = vitgan.fixed_noise(config, 10_000, seed=123), state.history[-1]
        samples = vitgan.sample(state.G_ema, z)
        row |= {"minutes": round(state.seconds / 60, 2),
                "images_per_s": round(state.images_seen / state.seconds),
                "logit_gap": round(last["logit_real"] - last["logit_fake"], 3),
                "diversity": round((samples[:1000] / 127.5).std(0).mean().item(), 3),
                "cfd": round(vitgan.cfd(samples), 2)}
        if part == "full":
            now = vitgan.sample(copy.deepcopy(state.G).eval(), z)
            row["cfd_without_ema"] = round(vitgan.cfd(now), 2)
        append(args.out, row)


def plot(rows, path):
    """A dot for each seed and part, at the largest number of images that all parts have."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator
    rows = [r for r in rows if r["cfd"]]
    parts = {r["part"] for r in rows}
    counts = [{r["images"] for r in rows if r["part"] == part} for part in parts]
    counts = set.intersection(*counts) if counts else set()
    if not counts:
        sys.exit("no rows with these settings, or no number of images that all their parts have")
    shown = [r for r in rows if r["images"] == max(counts, key=int)]
    scores = {what: [float(r["cfd"]) for r in shown if r["part"] == part]
              for part, (what, *_) in PARTS.items()}
    scores["no average of G's weights"] = [float(r["cfd_without_ema"]) for r in shown
                                           if r["cfd_without_ema"]]
    found = [(what, sum(v) / len(v), v) for what, v in scores.items() if v]
    fig, ax = plt.subplots(figsize=(7.5, 0.3 * len(found) + 1))
    for y, (what, mean, values) in enumerate(sorted(found, key=lambda row: row[1])):
        color = "#c53030" if what == PARTS["full"][0] else "#2b6cb0"
        ax.plot(values, [y] * len(values), "o-", color=color)
        ax.text(-0.02, y, what, ha="right", va="center", fontsize=9,
                transform=ax.get_yaxis_transform())
        if what == PARTS["full"][0]:
            ax.axvline(mean, color=color, lw=0.8, alpha=0.5)
    ax.set_yticks([])
    ax.set(xscale="log", xlabel=f"cFD after {int(max(counts, key=int)):,} images, one dot per seed")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    ax.invert_yaxis()
    fig.savefig(path, bbox_inches="tight")


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", default=["full"], choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiments" / "evidence.csv")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_intermixed_args(words)
    if args.plot:
        wanted = " ".join([args.profile, *args.fields])
        return plot([r for r in rows_of(args.out) if r["settings"] == wanted], args.plot)
    for part in args.parts:
        for seed in args.seeds:
            experiment(args, part, seed)


if __name__ == "__main__":
    main()
