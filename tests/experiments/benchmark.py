"""How fast a training step and sampling are here.

    python tests/experiments/benchmark.py --profile colab --batch 16 64
    python tests/experiments/benchmark.py --profile colab --curve 8 --data FOLDER

Images a second, the better of two turns, uncompiled. With --curve the profile is trained for so
many minutes, and each line is JSON: minutes, images, cFD, and on a GPU FID, if Inception's
weights can be had.
"""
import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402


def images_per_second(call, n, device, seconds):
    """How many images call(), which handles n of them, does in a second."""
    call()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        calls += 1
        torch.empty(1, device=device).cpu()  # waits for the device
    return n * calls / (time.perf_counter() - start)


def speeds(vitgan, profile, batches, device, seconds=2.0):
    """Two lines for each batch: training steps and samples."""
    for batch in batches:
        pixels = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
        data = helpers.Images(pixels, "noise", {})
        config = vitgan.configure(data, device, profile, batch_size=batch, compile=False)[1]
        images, z = data.pixels.to(device), torch.randn(batch, config.latent_dim, device=device)
        state = vitgan.TrainState(config, device)
        calls = {"train": partial(vitgan.train_step, state, images),
                 "sample": partial(vitgan.sample, state.G_ema, z)}
        for what, call in calls.items():
            rate = max(images_per_second(call, batch, device, seconds) for _ in range(2))
            print(f"{profile}, batch {batch}, {what}: {rate:.0f} images/s", flush=True)


def fid(fakes, images):
    import torch_fidelity
    fakes, reals = (torch.utils.data.Subset(x, range(len(x))) for x in (fakes, images))
    return torch_fidelity.calculate_metrics(input1=fakes, input2=reals, fid=True, verbose=False)


def curve(vitgan, profile, minutes, data_dir, device, points=8):
    data = helpers.load_images(32, data_dir)
    for k in range(1, points + 1):
        config = vitgan.configure(data, device, profile, max_minutes=minutes * k / points)[1]
        state = vitgan.train(config, data.pixels.to(device), ROOT / "runs" / f"curve-{profile}")
        line = {"minutes": state.seconds / 60, "images": state.images_seen}
        z = vitgan.fixed_noise(config, 10_000, seed=123)
        line["cfd"] = vitgan.cfd(vitgan.sample(state.G_ema, z))
        if device.type == "cuda":
            with helpers.optional("FID"):
                fakes = vitgan.sample(state.G_ema, vitgan.fixed_noise(config, 50_000))
                line["fid"] = fid(fakes, data.pixels)["frechet_inception_distance"]
        print(json.dumps(line), flush=True)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--curve", type=float, metavar="MINUTES")
    parser.add_argument("--data", default="")
    args = parser.parse_args(words)
    vitgan, device = helpers.load_definitions(), helpers.pick_device()
    if args.curve:
        return curve(vitgan, args.profile, args.curve, args.data, device)
    speeds(vitgan, args.profile, args.batch, device)


if __name__ == "__main__":
    main()
