"""How fast a training step and generation are on this machine, beside the literal versions of tests/reference.py.

    python tests/experiments/benchmark.py                                    # the paper's networks, batch 16
    python tests/experiments/benchmark.py --batch 64 256 1024 --literal 16   # for a GPU
    python tests/experiments/benchmark.py lr_g=0.003 --profile cpu --batch 64

FIELD=VALUE pairs override the profile. Medians, all in one process, printed and written as JSON. The last column is the share of
the fastest matrix product that this machine reached just before.
"""
import argparse
import dataclasses
import json
import logging
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

logging.getLogger("torch.utils.cpp_extension").disabled = True  # importing Timer looks for CUDA and says so
from torch.utils.benchmark import Timer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import reference  # noqa: E402

import helpers  # noqa: E402


def timed(function, min_run_time):
    """Times of one call, after one call to warm up; waits for the GPU."""
    function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time)


def matmul_peak(device, dtype, shapes):
    """FLOP/s of the fastest product [m, k] [k, n] of the shapes (m, k, n)."""
    found = []
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
        found += [2 * m * k * n / min(timed(lambda: a @ b, 0.2).times) for _ in range(3)]  # noqa: B023
    return max(found)


def tokens_of_d(config):
    return (config.image_size // (config.patch_size_d or config.patch_size)) ** 2


def shapes_for(config, device, batch):
    """Large squares, and the largest products of the training step itself."""
    tokens, D = 4 * batch * tokens_of_d(config), config.width
    squares = (2048, 4096, 8192) if device.type == "cuda" else (1024, 2048)
    return [(n, n, n) for n in squares] + [(tokens, D, 4 * D), (tokens, 4 * D, D), (512, D, 4 * D)]


def new_state(vitgan, config, device):
    """A TrainState at step 0 and random images for it."""
    shape = 4 * config.batch_size, 3, config.image_size, config.image_size
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return vitgan.TrainState(config, images), images


def flops_per_image(vitgan, config, device):
    """FLOPs of the matrix products of one training step, by image."""
    state, images = new_state(vitgan, dataclasses.replace(config, compile=False, precision="float32"), device)
    with FlopCounterMode(display=False) as flops:
        vitgan.train_step(state, images)
    return flops.get_total_flops() / config.batch_size


def measure(vitgan, config, device, literal, min_run_time, mode=False):
    """One row of the table: images per second of training and of generation; on CUDA the peak memory of training, too.
    `mode`: False, or True for torch.compile, or its mode, say "reduce-overhead"."""
    torch.compiler.reset()
    state, images = new_state(vitgan, dataclasses.replace(config, compile=mode is True), device)
    if mode and mode is not True:
        for network in (state.G, state.D):
            network.compile(dynamic=False, mode=mode)
    for network in (state.G, state.D) if literal else ():
        reference.make_literal(network)
    row = {"code": "literal" if literal else {True: "compiled", False: "notebook"}.get(mode, mode), "dtype": config.precision,
           "batch": config.batch_size, "memory_mib": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = (lambda: reference.training_step(state, images, vitgan)) if literal else (lambda: vitgan.train_step(state, images))
    row["train"] = config.batch_size / timed(step, min_run_time).median
    if device.type == "cuda":
        row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    G = state.G.eval()
    z = torch.randn(config.batch_size, config.latent_dim, device=device)
    with torch.no_grad(), state.autocast():
        row["generate"] = config.batch_size / timed(lambda: G(z), min_run_time / 2).median
    return row


def table(vitgan, config, device, batches, dtypes, compiled=(False, True), literal_batch=None, min_run_time=4.0):
    """All rows, printed as they come; returns what the JSON file holds. `vitgan`: a namespace with the notebook's definitions."""
    shapes = shapes_for(config, device, batches[0])
    peaks = {dtype: matmul_peak(device, getattr(torch, dtype), shapes) for dtype in dtypes}
    flops = flops_per_image(vitgan, dataclasses.replace(config, batch_size=batches[0]), device)
    print("fastest matrix product: " + ", ".join(f"{peak / 1e12:.2f} TFLOP/s {dtype}" for dtype, peak in peaks.items()))
    print(f"{'code':16}{'dtype':10}{'batch':>6}{'train/s':>10}{'ratio':>8}{'generate/s':>12}{'ratio':>8}{'of peak':>9}")
    wanted = [(literal_batch, "float32", False, True)] if literal_batch else []
    wanted += [(batch, dtype, mode, False) for batch in batches for dtype in dtypes for mode in compiled]
    rows = []
    for batch, dtype, mode, literal in wanted:
        shape = dataclasses.replace(config, batch_size=batch, precision=dtype)
        try:
            row = measure(vitgan, shape, device, literal, min_run_time, mode)
        except torch.OutOfMemoryError:
            print(f"batch {batch}, {dtype}: out of memory", flush=True)
            continue
        rows.append(row | {"share_of_peak": None if literal else row["train"] * flops / peaks[dtype]})
        show(rows[-1], rows[0] if rows[0]["code"] == "literal" else None)
    return {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(), "threads": torch.get_num_threads(),
            "config": dataclasses.asdict(config), "matmul_flops_per_second": peaks, "flops_per_image": flops, "rows": rows}


def show(row, literal):
    """Print a row, with ratios to the literal one's."""
    ratios = [f"{row[name] / literal[name]:.1f}x" if literal else "" for name in ("train", "generate")]
    share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
    print(f"{row['code']:16}{row['dtype']:10}{row['batch']:6}{row['train']:10.1f}{ratios[0]:>8}"
          f"{row['generate']:12.1f}{ratios[1]:>8}{share:>9}", flush=True)


def cpu_name():
    """The CPU's model name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--literal", type=int, default=16, help="batch of the literal versions; 0 leaves them out")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark.json")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_intermixed_args()
    device, vitgan = helpers.pick_device(), helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    config = vitgan.Config.profile(args.profile, **helpers.parse_settings(shlex.join(args.fields)))
    dtypes = ["float32", "bfloat16"] + ["float16"] * (device.type == "cuda")
    found = table(vitgan, config, device, args.batch, dtypes, literal_batch=args.literal)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    print(f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}; written to {args.out}")


if __name__ == "__main__":
    main()
