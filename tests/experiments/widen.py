"""Goes on from a run's checkpoint with a generator of twice the width and depth, which draws the same images at first.

    python tests/experiments/widen.py runs/FOLDER --images 1000000 --data FOLDER     (trains in runs/FOLDER-wide)

Each unit of G is doubled. A weight W that reads a doubled pair becomes W/2 + N and W/2 - N: the noise N cancels until the pair
differs, and then it tells the two apart. New blocks add 0 at first. G's optimizer starts anew; D goes on. Source: Net2Net.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
import helpers  # noqa: E402
import run  # noqa: E402


def larger(config):
    """The settings of the wide generator."""
    return dataclasses.replace(config, width=2 * config.width, heads=2 * config.heads, depth=2 * config.depth)


def widened(tensors, like):
    """A generator's state dict `tensors`, for the larger generator `like`."""
    torch.manual_seed(0)  # the same noise for G and its average
    found = {name: tensor.clone() for name, tensor in like.state_dict().items()}
    for name, big in found.items():
        if name not in tensors:  # a new block
            if "attention.out" in name or "mlp.2" in name:
                big.zero_()
            continue
        small = tensors[name]
        if big.ndim and len(big) == 2 * len(small):
            parts = small.chunk(3 if "qkv" in name else 1)  # queries, keys and values, each by itself
            small = torch.cat([copy for part in parts for copy in (part, part)])
        if big.ndim == 2 and big.shape[1] == 2 * small.shape[1]:  # stored weights are divided by sqrt(fan-in) when used
            noise = torch.randn_like(small) * small.square().mean().sqrt()
            small = torch.cat([small + noise, small - noise], 1) / 2**0.5
        big.copy_(small)
    return found


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run that is grown, if it grows")
    parser.add_argument("--images", type=int, required=True, help="in all")
    parser.add_argument("--data", default="", help="folder of images; default: the run's")
    args = parser.parse_args(words)
    vitgan = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    small = vitgan.Generator
    vitgan.Generator = lambda config: small(larger(config))  # what TrainState builds from now on
    saved, wide = helpers.load_checkpoint(args.folder / "checkpoint.pt"), args.folder.with_name(args.folder.name + "-wide")
    config = vitgan.Config(**saved["config"] | {"total_images": args.images, "max_minutes": 1e6})
    images = helpers.load_images(config.image_size, args.data or config.data_dir).pixels.to(helpers.pick_device())
    if not (wide / "checkpoint.pt").exists():
        state = vitgan.TrainState(config, images)
        parts = {"opt_G": state.opt_G.state_dict()} | {name: widened(saved[name], state.G) for name in ("G", "G_ema")}
        state.load_state_dict(saved | parts)
        helpers.save_checkpoint(wide / "checkpoint.pt", state.state_dict())
    state = vitgan.train(config, images, wide)
    card = {"images_seen": state.images_seen, "minutes": state.seconds / 60, "cFD": run.score(vitgan, state.G_ema, config)}
    vitgan.save_generator(wide / "generator.safetensors", state.G_ema, larger(config), card)
    print(card)


if __name__ == "__main__":
    main()
