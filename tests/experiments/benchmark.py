"""How fast a training step and generation are on this machine, beside the literal versions and beside the floor.

    python tests/benchmark.py                                  # the paper's networks, batch 16, eager and compiled
    python tests/benchmark.py --batch 64 256 1024 --literal 16  # for a GPU
    python tests/benchmark.py --profile cpu --batch 64

FIELD=VALUE pairs override the profile. Everything is timed in one process by torch.utils.benchmark (medians), with the
matrix-product peak of this machine measured before it, and written as JSON with versions and date.
"""

import argparse
import dataclasses
import logging
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

logging.getLogger("torch.utils.cpp_extension").disabled = True  # importing Timer looks for CUDA and says so
from torch.utils.benchmark import Timer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import reference  # noqa: E402
from experiment import fields  # noqa: E402

import helpers  # noqa: E402

# --------------------------------------------------------------------------------------------------------------- timing


def seconds(function, min_run_time):
    """Median time of one call, after one call to warm up; waits for the GPU."""
    function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time).median


def matmul_peak(device, dtype, n=None):
    """FLOP/s of one n x n x n matrix product, the best of several runs."""
    n = n or (8192 if device.type == "cuda" else 2048)
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ b, 0.5) for _ in range(3))


def bandwidth(device, size=2**27):
    """Bytes/s, read and written, of copying `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), 0.5)


# ------------------------------------------------------------------------------------------------------ FLOPs and bytes


def count(function):
    """(FLOPs of the matrix products, bytes of distinct tensors kept for the backward pass) of one call."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return flops.get_total_flops(), sum(kept.values())


def step_counts(vitgan, config, device):
    """{"D step": (FLOPs, least bytes), "G step": ...} of one training step.

    Least bytes: what backward needs is written and read once; a float32 weight is read twice, its gradient written and
    read, and Adam reads three numbers and writes three.
    """
    run, images = new_run(vitgan, config, device)
    real = vitgan.sample_real(images, config.batch_size, config.flip)
    z = torch.randn(config.batch_size, config.latent_dim, device=device)
    fake = vitgan.generate(run, z).detach()
    steps = {"D step": (run.D, lambda: vitgan.discriminator_step(run, real, fake)),
             "G step": (run.G, lambda: vitgan.generator_step(run, [vitgan.generate(run, z)]))}
    counts = {}
    for name, (network, step) in steps.items():
        flops, kept = count(step)
        counts[name] = flops, 2 * kept + 10 * 4 * sum(p.numel() for p in network.parameters())
    return counts


# ----------------------------------------------------------------------------------------------------------------- rows


def new_run(vitgan, config, device):
    """A run at step 0 and random images for it."""
    images = torch.randint(256, (4 * config.batch_size, 3, config.image_size, config.image_size),
                           dtype=torch.uint8, device=device)
    return vitgan.new_run(config, tempfile.gettempdir(), device), images


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
    run, images = new_run(vitgan, config, device)
    row = {"code": "literal" if literal else "notebook", "dtype": str(run.dtype).removeprefix("torch."),
           "compile": config.compile, "batch": config.batch_size}
    start = time.perf_counter()
    if config.compile:
        row["compile"] = vitgan.compile_networks(run, images)
        row["compile_seconds"] = time.perf_counter() - start
    G = reference.make_literal(run.G) if literal else run.G
    reset_peak_memory(device)
    step = (lambda: reference.training_step(run, images, vitgan)) if literal else (lambda: vitgan.training_step(run, images))
    row["train"] = config.batch_size / seconds(step, min_run_time)
    row["memory_mib"] = peak_memory(device)
    z = torch.randn(config.batch_size, config.latent_dim, device=device)
    G.eval()
    with torch.no_grad(), run.autocast():
        row["generate"] = config.batch_size / seconds(lambda: G(z), min_run_time / 2)
    return row


def table(vitgan, config, device, batches, dtypes, compiled=(False, True), literal_batch=None, min_run_time=4.0):
    """All rows, printed as they come, after the floor; returns what the JSON file holds."""
    peaks = {d: matmul_peak(device, getattr(torch, d)) for d in dtypes}
    speed = bandwidth(device)
    counts = step_counts(vitgan, dataclasses.replace(config, batch_size=batches[0], compile=False), device)
    print(f"matrix products: {', '.join(f'{p / 1e12:.2f} TFLOP/s {d}' for d, p in peaks.items())}; "
          f"memory: {speed / 1e9:.0f} GB/s")
    for name, (flops, least) in counts.items():
        times = ", ".join(f"{1e3 * max(flops / p, least / speed):.0f} ms {d}" for d, p in peaks.items())
        print(f"{name}, batch {batches[0]}: {flops / 1e9:.0f} GFLOP, at least {least / 1e9:.2f} GB; floor {times}")
    per_image = sum(flops for flops, _ in counts.values()) / batches[0]
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
            "bytes_per_second": speed, "flops_and_least_bytes": counts, "rows": rows}


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
    config = vitgan.Config.profile(args.profile, **fields(args.fields))
    dtypes = args.dtypes or ["float32", "bfloat16"] + ["float16"] * (device.type == "cuda")
    found = table(vitgan, config, device, args.batch, dtypes, (False,) if args.eager else (False, True), args.literal)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    helpers.save_json(args.out, found)
    print(f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}; written to {args.out}")


if __name__ == "__main__":
    main()
