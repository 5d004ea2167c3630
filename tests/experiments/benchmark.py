"""How fast a training step is here, for each number format, compiled and not.

    python tests/experiments/benchmark.py --profile colab --batch 64

Each line has images a second, the better of two turns, and on a CUDA device the peak of memory.
Compare lines of one run only, since machines differ.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402


def images_per_second(state, images, seconds):
    """Training steps for some seconds, after one that warms up or compiles."""
    vitgan = sys.modules["vitgan"]
    vitgan.train_step(state, images)
    torch.empty(1, device=images.device).cpu()  # waits for the device
    start, seen = time.perf_counter(), state.images_seen
    while time.perf_counter() - start < seconds:
        vitgan.train_step(state, images)
        torch.empty(1, device=images.device).cpu()
    return (state.images_seen - seen) / (time.perf_counter() - start)


def compare(profile, batch, device, seconds=5.0, formats=("float32", "bfloat16", "float16")):
    """Print a line for each format, compiled or not, slow combinations included."""
    vitgan = helpers.load_definitions()
    pixels = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
    data, images = helpers.Images(pixels, "noise"), pixels.to(device)
    for precision, compiled in itertools.product(formats, (False, True)):
        chosen = dict(precision=precision, compile=compiled, batch_size=batch)
        state = vitgan.TrainState(vitgan.configure(data, device, profile, **chosen)[1], device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rate = max(images_per_second(state, images, seconds) for _ in range(2))
        line = f"{profile}, batch {batch}, {precision:8}, {'compiled' if compiled else 'plain':8}"
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        print(
            f"{line}: {rate:6.0f} images/s" + (f", {memory:.1f} GiB" if memory else ""), flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    compare(args.profile, args.batch, helpers.pick_device())
