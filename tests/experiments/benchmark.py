"""How fast a training step and generation are on this machine, beside the literal versions.

    python tests/experiments/benchmark.py                                  # the paper's networks, batch 16, eager and compiled
    python tests/experiments/benchmark.py --batch 64 256 1024 --literal 16  # for a GPU
    python tests/experiments/benchmark.py --profile cpu --batch 64

FIELD=VALUE pairs override the profile. Everything is timed in one process by torch.utils.benchmark (medians), with the
fastest matrix product of this machine measured before it, and written as JSON with versions and date.
"""

import argparse
import dataclasses
import json
import logging
import platform
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

# --------------------------------------------------------------------------------------------------------------- timing


def seconds(function, min_run_time):
    """Median time of one call, after one call to warm up; waits for the GPU."""
    function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time).median


def matmul_peak(device, dtype):
    """FLOP/s of the fastest of several square matrix products."""
    best = 0.0
    for n in (4096, 8192, 16384) if device.type == "cuda" else (256, 512, 1024, 2048):
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        best = max(best, *(2 * n**3 / seconds(lambda: a @ b, 0.2) for _ in range(2)))
    return best


def flops_per_image(vitgan, config, device):
    """FLOPs of the matrix products of one training step, per image."""
    state, images = new_state(vitgan, config, device)
    with FlopCounterMode(display=False) as counter:
        vitgan.train_step(state, images)
    return counter.get_total_flops() / config.batch_size


def new_state(vitgan, config, device):
    """A TrainState at step 0 and random images for it."""
    shape = (4 * config.batch_size, 3, config.image_size, config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return vitgan.TrainState(config, images), images


def reset_peak_memory(device):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """Peak MiB since the last reset: allocated tensors on a GPU, the whole process on Linux, else None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if not Path("/proc/self/status").exists():
        return None
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(vitgan, config, device, literal=False, min_run_time=4.0):
    """One row of the table: images per second of training and of generation, and peak memory of training."""
    torch.compiler.reset()
    state, images = new_state(vitgan, config, device)
    row = {"code": "literal" if literal else "notebook", "dtype": str(helpers.pick_dtype(device, config.precision)).removeprefix("torch."),
           "compile": config.compile, "batch": config.batch_size}
    if config.compile:
        state.G.compile(dynamic=False)
        state.D.compile(dynamic=False)
    G = reference.make_literal(state.G) if literal else state.G
    reset_peak_memory(device)
    step = (lambda: reference.training_step(state, images, vitgan)) if literal else (lambda: vitgan.train_step(state, images))
    row["train"] = config.batch_size / seconds(step, min_run_time)
    row["memory_mib"] = peak_memory(device)
    z = torch.randn(config.batch_size, config.latent_dim, device=device)
    G.eval()
    with torch.no_grad(), state.autocast():
        row["generate"] = config.batch_size / seconds(lambda: G(z), min_run_time / 2)
    return row


def table(vitgan, config, device, batches, dtypes, compiled=(False, True), literal_batch=None, min_run_time=4.0):
    """All rows, printed as they come, after the fastest matrix product; returns what the JSON file holds."""
    peaks = {d: matmul_peak(device, getattr(torch, d)) for d in dtypes}
    print("fastest matrix product: " + ", ".join(f"{peak / 1e12:.2f} TFLOP/s {d}" for d, peak in peaks.items()))
    per_image = flops_per_image(vitgan, dataclasses.replace(config, batch_size=batches[0], compile=False), device)
    print(f"width {config.width}, {config.depth} + {config.depth} blocks, {config.image_size}x{config.image_size}: "
          f"{per_image / 1e9:.2f} GFLOP per training image")
    print(f"{'code':9}{'dtype':10}{'compile':>8}{'batch':>7}{'train/s':>9}{'ratio':>8}{'generate/s':>12}{'ratio':>8}"
          f"{'MiB':>7}{'of peak':>9}")
    wanted = [(literal_batch, "float32", False, True)] if literal_batch else []
    wanted += [(b, d, c, False) for b in batches for d in dtypes for c in compiled]
    rows = []
    for batch, dtype, compiles, literal in wanted:
        shape = dataclasses.replace(config, batch_size=batch, precision=dtype, compile=compiles)
        try:
            row = measure(vitgan, shape, device, literal, min_run_time)
        except torch.OutOfMemoryError:
            print(f"{'notebook':9}{dtype:10}{compiles!s:>8}{batch:7} out of memory", flush=True)
            continue
        row["share_of_peak"] = None if literal else row["train"] * per_image / peaks[dtype]
        rows.append(row)
        show(row, rows[0] if literal_batch else None)
    return {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
            "threads": torch.get_num_threads(), "config": dataclasses.asdict(config), "matmul_flops_per_second": peaks,
            "flops_per_image": per_image, "rows": rows}


def show(row, literal):
    """Print a row, with ratios to the literal version's."""
    ratios = {k: f"{row[k] / literal[k]:.1f}x" if literal else "" for k in ("train", "generate")}
    share = f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else ""
    memory = f"{row['memory_mib']:.0f}" if row["memory_mib"] else "?"
    print(f"{row['code']:9}{row['dtype']:10}{row['compile']!s:>8}{row['batch']:7}{row['train']:9.1f}{ratios['train']:>8}"
          f"{row['generate']:12.1f}{ratios['generate']:>8}{memory:>7}{share:>9}", flush=True)


def cpu_name():
    """The CPU's model name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--literal", type=int, default=16, help="batch of the literal versions; 0 leaves them out")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark.json")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_intermixed_args()
    device = helpers.pick_device()
    vitgan = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb")
    config = vitgan.Config.profile(args.profile, **helpers.parse_settings(" ".join(args.fields)))
    dtypes = args.dtypes or ["float32", "bfloat16"] + ["float16"] * (device.type == "cuda")
    found = table(vitgan, config, device, args.batch, dtypes, (False,) if args.eager else (False, True), args.literal)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}; written to {args.out}")


if __name__ == "__main__":
    main()
