"""Is the kit right on this GPU, how fast is it, and which batch fits? A table and one JSON file, in about 8 minutes.

    python tests/experiments/gpu.py                                          # exit status 1 if a check fails
    python tests/experiments/gpu.py --train colab --minutes 55 --data FOLDER # a run, with FID or cFD against minutes

Without a GPU the same code runs on the CPU; --small takes the `smoke` networks only, in half a minute. What --limit
(minutes) leaves no time for is listed as skipped. "CPU" below is the CPU in float32, with the same weights and draws.
"""
import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for a resumed run that equals another bit for bit
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
import benchmark  # noqa: E402
import judge  # noqa: E402

import helpers  # noqa: E402

SMALL = dict(total_images=96, batch_size=16, log_images=32, grow_after=48, precision="float32")  # a run of six steps that grows
TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}  # of losses, logits and G's relative gradient


class CpuDraws(torch.overrides.TorchFunctionMode):
    """Inside this block random numbers are drawn on the CPU and then moved, so that every device gets the same."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.rand, torch.randn, torch.randint):
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device", "cpu"))
        return function(*args, **kwargs)


def noise_images(config, device, n=64):
    """The same uint8 images [n, 3, S, S] on every device."""
    shape = n, 3, config.image_size, config.image_size
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def one_step(vitgan, config, device):
    """(losses, gradient of G) of one step at learning rates of 0, so that rounding cannot grow."""
    images = noise_images(config, device)
    state = vitgan.TrainState(config, images)
    if state.scaler.is_enabled():
        state.scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
    with CpuDraws():
        losses = vitgan.train_step(state, images)
    gradient = torch.cat([p.grad.flatten() for p in state.G.parameters()]).cpu()
    return {name: value.item() for name, value in losses.items()}, gradient


def step_equals_cpu(vitgan, device, profile, dtype):
    """Largest difference of the losses, or of G's gradient (relative), from the CPU's."""
    config = vitgan.Config.profile(profile, batch_size=8, grow_after=0, lr_g=0, lr_d=0, compile=False, precision="float32")
    expected, direction = one_step(vitgan, config, torch.device("cpu"))
    found, gradient = one_step(vitgan, dataclasses.replace(config, precision=dtype), device)
    apart = [abs(found[name] - expected[name]) for name in expected]
    return max(*apart, ((gradient - direction).norm() / direction.norm()).item())


def late_skips(vitgan, device, profile, steps):
    """Steps in float16 that the GradScaler skipped in the second half of so many; NaN if a loss is not finite."""
    config = vitgan.Config.profile(profile, grow_after=0, compile=False, precision="float16")
    images, scales, losses = noise_images(config, device, 512), [], []
    state = vitgan.TrainState(config, images)
    for _ in range(steps):
        losses += vitgan.train_step(state, images).values()
        scales.append(state.scaler.get_scale())
    late = scales[steps // 2 :]
    return sum(b < a for a, b in zip(late, late[1:])) if torch.stack(losses).isfinite().all() else math.nan


def compiled_equals_eager(vitgan, device, profile):
    """Largest difference of the images of G and the logits of D."""
    config = vitgan.Config.profile(profile, grow_after=0)
    torch.manual_seed(0)
    G, D = vitgan.Generator(config).to(device).eval(), vitgan.Discriminator(config).to(device).eval()
    z = vitgan.fixed_noise(config, 8).to(device)
    with torch.no_grad():
        return max((torch.compile(net, dynamic=False)(x) - net(x)).abs().max().item() for net, x in ((G, z), (D, G(z))))


def resumed_equals_whole(vitgan, device):
    """Largest difference of the averages of G after a run, and after the same run in two parts."""
    config = vitgan.Config.profile("smoke", **SMALL)
    images, half = noise_images(config, device), dataclasses.replace(config, total_images=64)
    torch.use_deterministic_algorithms(True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = vitgan.train(config, images, f"{folder}/whole")
            vitgan.train(half, images, f"{folder}/parts")
            parts = vitgan.train(config, images, f"{folder}/parts")
    finally:
        torch.use_deterministic_algorithms(False)
    return max((a - b).abs().max().item() for a, b in zip(whole.G_ema.parameters(), parts.G_ema.parameters()))


def grown_equals_small(vitgan, device):
    """Largest difference of D's logits of images from its logits of their 2 x 2 means before growing."""
    config = vitgan.Config.profile("smoke", patch_size=8, grow_after=1, precision="float32")
    images = noise_images(config, device)
    state, x = vitgan.TrainState(config, images), images[:8] / 127.5 - 1
    before = state.D.eval()(F.avg_pool2d(x, 2))
    vitgan.grow(state)
    return (state.D.eval()(x) - before).abs().max().item()


def samples_equal_cpu(vitgan, device):
    """Mean difference of the shipped weights' images from the CPU's, in gray levels."""
    G, config, _ = vitgan.load_generator(ROOT / "assets" / "vitgan-32.safetensors")
    z = vitgan.fixed_noise(config, 64)
    expected = vitgan.sample(G, z).float()
    return (vitgan.sample(G.to(device), z).float() - expected).abs().mean().item()


def processes_agree():
    """Largest difference between the weights of two processes that trained together on this one device, by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        ended = subprocess.run([*launch, __file__, "--worker", folder], capture_output=True, text=True, timeout=240)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-300:])
    return float(ended.stdout.split()[-1])


def worker(vitgan, device, folder):
    """One of the two processes; the first prints the largest difference of its weights from their mean."""
    os.environ["LOCAL_RANK"] = "0"  # both on the first GPU
    dist.init_process_group("gloo")  # before the kit takes NCCL, which wants a GPU for each process
    config = vitgan.Config.profile("smoke", **SMALL)
    state = vitgan.train(config, noise_images(config, device), folder)
    weights = [p.detach() for net in (state.G, state.D, state.G_ema) for p in net.parameters()]
    means = [w.clone() for w in weights]
    helpers.average(means)
    if dist.get_rank() == 0:  # both are as far from their mean
        print(max((a - b).abs().max().item() for a, b in zip(weights, means)))
    dist.destroy_process_group()


def checks(vitgan, device, small):
    """(what, largest value allowed, function) for every check, the cheap ones first."""
    dtypes = ["float32", "bfloat16"] + ["float16"] * (device.type == "cuda")  # GradScaler needs CUDA
    profiles = ["smoke"] if small else list(vitgan.PROFILES)[::-1]
    yield "D grown: logits", 1e-4, lambda: grown_equals_small(vitgan, device)
    yield "samples of the weights: gray levels from CPU", 0.5, lambda: samples_equal_cpu(vitgan, device)
    yield "a run in two parts", 0.0, lambda: resumed_equals_whole(vitgan, device)
    yield "two processes, one device", 1e-5, processes_agree
    for profile in profiles:
        for dtype in dtypes:
            yield (f"{profile}: step in {dtype}, from CPU", TOLERANCE[dtype],
                   lambda profile=profile, dtype=dtype: step_equals_cpu(vitgan, device, profile, dtype))
    if "float16" in dtypes:
        yield "tiny: skipped steps among 250 to 500", 0, lambda: late_skips(vitgan, device, "tiny", 500)


def fused_attention(q, v):
    """`l2_attention` by torch's fused kernel: the row's |q_i|^2 cancels, |q_j|^2 is one more feature of the keys."""
    d = q.shape[-1]
    extra = F.pad(torch.ones_like(q[..., :1]), (0, -(d + 1) % 8))  # the head size stays a multiple of 8
    keys = torch.cat([2 * q, F.pad(-q.square().sum(-1, keepdim=True), (0, -(d + 1) % 8))], -1)
    return F.scaled_dot_product_attention(torch.cat([q, extra], -1), keys, F.pad(v, (0, 8 - d % 8)), scale=d**-0.5)[..., :d]


def attention_row(vitgan, config, device, dtype, min_run_time):
    """Forward and backward of D's attention in both forms, for a training step's 4 B images; `apart` is in float32."""
    tokens = benchmark.tokens_of_d(config)
    shape = 4 * config.batch_size, config.heads, tokens, config.width // config.heads
    q, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    apart = (fused_attention(q.float(), v.float()) - vitgan.l2_attention(q.float(), v.float())).abs().max().item()
    plain, fused = (benchmark.timed(lambda: form(q, v).sum().backward(), min_run_time).median  # noqa: B023
                    for form in (vitgan.l2_attention, fused_attention))
    return {"tokens": tokens, "plain_ms": 1e3 * plain, "fused_ms": 1e3 * fused, "apart": apart}


def batch_that_fits(rows, gigabytes):
    """The largest batch in so much memory, 1 GB of it left free, by a line through the two largest batches measured."""
    (a, least), (b, most) = [(row["batch"], row["memory_mib"]) for row in rows][-2:]
    slope = (most - least) / (b - a)
    return int((1024 * (gigabytes - 1) - least) / slope + a)


def speed(vitgan, device, profile, batches, min_run_time, mode=False):
    """Training and generation for each batch; unless compiled, also the literal code's, attention, and what fits."""
    config, dtype = vitgan.Config.profile(profile, grow_after=0), str(helpers.pick_dtype(device)).removeprefix("torch.")
    batches = batches or [config.batch_size]
    found = benchmark.table(vitgan, config, device, batches, [dtype], [mode], 0 if mode else batches[0], min_run_time)
    if mode:
        return found
    found["attention"] = attention_row(vitgan, config, device, getattr(torch, dtype), min_run_time)
    print("attention of D: {plain_ms:.2f} ms plain, {fused_ms:.2f} ms fused ({tokens} tokens)".format(**found["attention"]))
    eager = [row for row in found["rows"] if row["code"] == "notebook"]
    if device.type == "cuda" and len(eager) > 1:
        found["batch_that_fits"] = {gigabytes: batch_that_fits(eager, gigabytes) for gigabytes in (16, 24)}
        print(", ".join(f"{g} GB hold a batch of {n}" for g, n in found["batch_that_fits"].items()))
    return found


def fid(samples, images):
    """FID of uint8 [n, 3, S, S] against `images`; None where Inception's weights cannot be downloaded."""
    import torch_fidelity

    both = [torch.utils.data.Subset(x, range(len(x))) for x in (samples, images.cpu())]
    try:
        found = torch_fidelity.calculate_metrics(input1=both[0], input2=both[1], cuda=True, fid=True, verbose=False)
        return found["frechet_inception_distance"]
    except OSError as error:
        print(f"FID left out: {error}")


def curve(vitgan, device, args):
    """Train a profile for so many minutes and score each snapshot; returns the rows."""
    config, data = vitgan.configure(args.train, data_dir=args.data, max_minutes=args.minutes, total_images=10**9)
    images, rows = data.pixels.to(device), []

    def score(state, samples):
        begun, size = time.monotonic(), samples.shape[-1]
        row = {"minutes": round(state.seconds / 60, 1), "images": state.images_seen, "size": size}
        if size in judge.SIZES and "cifar" in data.name.lower():
            row["cfd"] = judge.scores(vitgan.sample(state.G_ema, vitgan.fixed_noise(config, 10_000, seed=123)))["cfd"]
        if device.type == "cuda" and size == config.image_size:
            row["fid"] = fid(vitgan.sample(state.G_ema, vitgan.fixed_noise(config, 50_000)), images)
        rows.append(row)
        print(row, flush=True)
        if vitgan.unfinished(state):
            state.seconds -= time.monotonic() - begun  # the next log adds it; scoring is not training

    folder = args.out.parent / f"gpu-{args.train}"
    state = vitgan.train(config, images, folder, score)
    vitgan.save_generator(folder / "generator.safetensors", state.G_ema, config, {"data": data.name, "curve": rows})
    helpers.image_grid(vitgan.sample(state.G_ema, vitgan.fixed_noise(config, 64)), 16, scale=3).save(folder / "samples.png")
    return rows


def examine(vitgan, device, args):
    """All checks and speeds within args.limit minutes, compilation last: what the JSON file holds."""
    found, end = {"checks": [], "speed": {}, "skipped": []}, time.monotonic() + 60 * args.limit

    def measured(what, function, *rest):  # a row of the plan that keeps what the function returns
        return what, 0.0, lambda: found["speed"].update({what: function(vitgan, device, *rest)}) or 0.0

    plan = [*checks(vitgan, device, args.small)]
    if args.small:
        plan += [measured("speed of smoke", speed, "smoke", [4, 8], 0.05)]
    else:
        plan += [measured(f"speed of {profile}", speed, profile, [32, 128, 512, 1024], 2.0) for profile in ("colab", "paper")]
        for profile in ("colab", "paper"):
            plan += [(f"{profile}: compiled", 1e-3, lambda profile=profile: compiled_equals_eager(vitgan, device, profile)),
                     measured(f"speed of {profile}, compiled", speed, profile, [], 4.0, True),
                     measured(f"speed of {profile}, reduce-overhead", speed, profile, [], 4.0, "reduce-overhead")]
    for what, allowed, function in plan:
        if time.monotonic() > end:
            found["skipped"].append(what)
            continue
        try:
            value, note = function(), ""
        except Exception as error:  # noqa: BLE001 - whatever breaks here is what this command looks for
            value, note = math.nan, f"{type(error).__name__}: {error}"[:300]
        found["checks"].append({"what": what, "found": value, "allowed": allowed, "ok": value <= allowed, "note": note})
        print(f"{'ok' if value <= allowed else 'WRONG':6}{what:48}{value:10.2g}{allowed:10.2g}  {note}", flush=True)
    if found["skipped"]:
        print("skipped for lack of time: " + "; ".join(found["skipped"]))
    return found


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the smoke networks only")
    parser.add_argument("--limit", type=float, default=8.0, help="minutes after which no check begins")
    parser.add_argument("--train", metavar="PROFILE", default="", help="train instead, and score each snapshot")
    parser.add_argument("--minutes", type=float, default=55.0, help="of training")
    parser.add_argument("--data", default="", help="folder of images; default: CIFAR-10")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    vitgan, device = helpers.load_definitions(ROOT / "ViTGAN_CIFAR10.ipynb"), helpers.pick_device()
    if args.worker:
        return worker(vitgan, device, args.worker)
    name = torch.cuda.get_device_name() if device.type == "cuda" else benchmark.cpu_name()
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    found = {"curve": curve(vitgan, device, args)} if args.train else examine(vitgan, device, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    args.out.write_text(json.dumps(about | found, indent=1))
    print(f"written to {args.out}")
    return not all(check["ok"] for check in found.get("checks", []))


if __name__ == "__main__":
    sys.exit(main())
