"""What surrounds ViTGAN: devices, data, runs, pictures. Images are uint8 [n, 3, S, S].
python helpers.py [NAME=VALUE ...] trains; names: profile, data_dir, image_size, Config's fields."""
import ctypes
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import socket
import sys
import time
import warnings
from collections import Counter, namedtuple
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
import torch.distributed as dist
from filelock import FileLock
from IPython.display import Markdown, display
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10
from torchvision.utils import make_grid
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
with suppress(AttributeError, TypeError):  # glibc: keep memory, new pages must be cleared
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
    ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
# ---- devices and several processes ----
@contextmanager
def optional(what):
    """Whatever the block raises becomes one warning: nothing optional may end a run."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"left out: {what} ({type(error).__name__}: {error!s:.300})", stacklevel=3)

def pick_device():
    """This process's GPU (CUDA, MPS, XPU), if this torch can use one, else the CPU."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    with optional(f"{device}, the CPU takes its place"):  # torch has no kernels for an old GPU
        torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)).cpu()
        return device
    return torch.device("cpu")

def compile_networks(G, D):
    """Compile both in place, or say in one warning why they stay as they are."""
    with optional("torch.compile, training goes on without it"):
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA" on a CPU
        torch.compile(lambda x: x.sin() + 1)(G.w_avg)  # is there a compiler?
        G.compile(dynamic=False)
        D.compile(dynamic=False)

def rank_and_size():
    """(rank of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

def all_reduce_mean(tensors):
    """Replace each tensor by its mean over all processes, in place; alone, do nothing."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()

# ---- data ----
Images = namedtuple("Images", "pixels name settings path", defaults=[""])  # settings: what suits
DIGITS = dict(augment="translation,cutout", flip=False, phase_step=1.5, lr_g=0.003, lr_d=0.003)

def load_images(size, data_dir=""):
    """The images below a folder; "digits": scikit-learn's; "": CIFAR-10, or else digits."""
    if data_dir and (data_dir != "digits" or os.path.isdir(data_dir)):
        return load_folder(Path(os.path.expanduser(data_dir)), size)
    if not data_dir:
        socket.setdefaulttimeout(20)  # a server that stays silent must not hang the notebook
        with optional("CIFAR-10, digits take its place; or set data_dir"), FileLock("cifar10.lock"):
            return Images(to_tensor(CIFAR10("data", download=True).data, size), "CIFAR-10", {})
    gray = (load_digits().images * 255 / 16).round().astype(np.uint8)
    return Images(to_tensor(gray[..., None].repeat(3, -1), size), "digits", DIGITS)

def load_folder(folder, size):
    """All images below `folder` that Pillow reads; says how many files were left out, and why."""
    arrays, refused, told = [], Counter(), f"data_dir={str(folder)!r}"
    if not folder.is_dir():
        what = "a file (unpack an archive first)" if folder.exists() else "not there"
        raise FileNotFoundError(f"{told} is {what}; expected a folder at {folder.absolute()}.")
    files, seen = set(), set()
    for where, folders, _ in os.walk(folder, True, lambda e: refused.update([str(e)]), True):
        here = Path(where).resolve()  # links may lead in circles
        folders[:] = [name for name in folders if name[0] != "." and here not in seen]
        seen.add(here)
        files |= {path.resolve() for path in here.glob("[!.]*") if path.is_file()}
    share = psutil.virtual_memory().available / (1 + 9 * len(files) * size**2)  # three copies
    if share < 1:
        raise MemoryError(f"{told}: {len(files):,} images of {size}×{size} do not fit into the "
                          f"free memory; image_size={int(size * share**0.5) // 8 * 8} would.")
    for path in sorted(files):
        try:
            with Image.open(path) as image:
                arrays.append(to_square_rgb(image, size))
        except Exception as error:
            reason = str(error).replace(f" {str(path)!r}", "")
            refused[f"{path.suffix}: " + re.sub(r"\d+ bytes", "some bytes", reason)] += 1
    told += f": {len(arrays):,} images from {len(files):,} files" + "".join(
        f"; left out {n:,} {reason}" for reason, n in refused.most_common())
    if len(arrays) < 2:
        raise ValueError(f"{told}; expected 2 or more, better thousands.")
    print(told)
    return Images(to_tensor(arrays, size), folder.resolve().name, {}, str(folder.resolve()))

def to_square_rgb(image, size):
    """Any PIL image -> uint8 [size, size, 3]: upright, on white, its central square."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range; save it as an 8-bit PNG")
    with suppress(Exception):  # broken metadata must not cost a picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))

def to_tensor(arrays, size):
    """uint8 arrays [h, w, 3] -> uint8 [n, 3, size, size]."""
    arrays = [a if len(a) == size else to_square_rgb(Image.fromarray(a), size) for a in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

# ---- runs ----
PARTS, COUNTERS = "G D G_ema opt_G opt_D scaler".split(), "images_seen seconds history".split()
MAY_CHANGE = ("total_images", "max_minutes", "compile", "precision")  # when a run goes on
LOG_STEPS = 50

def parse_settings(text):
    """'lr_g=0.003 data_dir="my photos"' -> {"lr_g": "0.003", "data_dir": "my photos"}."""
    words = shlex.split(text)
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"{wrong[0]!r} is no setting; expected NAME=VALUE, as in lr_g=0.003.")
    return dict(word.split("=", 1) for word in words)

def run_folder(root, profile, data, config):
    """root/profile-data-hash, where the hash is of the data's path and of what defines the run."""
    fixed = [data.path, *(pair for pair in vars(config).items() if pair[0] not in MAY_CHANGE)]
    slug = re.sub(r"\W+", "-", data.name.lower())[:40].strip("-")
    return Path(root) / f"{profile}-{slug}-{hashlib.sha256(repr(fixed).encode()).hexdigest()[:6]}"

class Run:
    """A run in a folder: log, checkpoints; Ctrl-C ends it after the step, a second one at once."""

    def __init__(self, state, folder):
        self.state, self.folder, self.losses, self.stopped = state, Path(folder), [], False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "checkpoint.tmp").touch()  # is it writable?
            if (self.folder / "checkpoint.pt").exists():
                self.restore(torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True))
        except Exception as error:
            raise ValueError(f"{self.folder} cannot hold this run ({type(error).__name__}: "
                             f"{str(error)[:300]}); move it away, or choose another.") from None
        if state.images_seen:
            print(f"{self.folder} has seen {state.images_seen:,} images; going on from there.")
        elif others := [path.parent.name for path in self.folder.glob("../*/checkpoint.pt")]:
            print(f"{self.folder} is new; runs with other settings or data: {', '.join(others)}")
        if rank := rank_and_size()[0]:  # no two processes draw the same noise
            torch.manual_seed(1_000_003 * (state.config.seed + state.images_seen) + rank)
        self.interval = min(600, 60 * state.config.max_minutes / 8)  # seconds between snapshots
        self.snapshot_at = state.seconds + self.interval

    def restore(self, saved):
        state, theirs, mine = self.state, saved["config"], vars(self.state.config)
        if wrong := [f"{k}={theirs.get(k)} (now {mine.get(k)})" for k in theirs | mine
                     if k not in MAY_CHANGE and theirs.get(k) != mine.get(k)]:
            raise ValueError(f"it holds a run with {', '.join(wrong)}")
        for name in PARTS:
            if saved[name]:  # a GradScaler that is off saves nothing
                getattr(state, name).load_state_dict(saved[name])
        vars(state).update({name: saved[name] for name in COUNTERS})
        torch.set_rng_state(saved["rng"][0])
        torch.cuda.set_rng_state_all(saved["rng"][1 : 1 + torch.cuda.device_count()])

    def __enter__(self):
        self.clock, self.before = time.monotonic(), signal.getsignal(signal.SIGINT)
        self.bar = tqdm(initial=self.state.images_seen, unit=" images", unit_scale=True, delay=0.1)
        with suppress(ValueError):  # no stop button off the main thread or in several processes
            signal.signal(signal.SIGINT, self.before if dist.is_initialized() else self.stop)
        return self

    def stop(self, *_):
        self.stopped = True
        signal.signal(signal.SIGINT, self.before)

    def __exit__(self, *_):
        with suppress(ValueError):
            signal.signal(signal.SIGINT, self.before)
        with suppress(OSError, AttributeError):
            (self.folder / "checkpoint.tmp").unlink(missing_ok=True)
            self.bar.close()

    def unfinished(self):
        c, seen, seconds = self.state.config, self.state.images_seen, self.state.seconds
        return not self.stopped and seen < c.total_images and seconds < 60 * c.max_minutes

    def log(self, losses):
        """Collect a step's losses, add their means to the history; returns if a snapshot is due."""
        c, state = self.state.config, self.state
        self.losses.append(losses)
        with suppress(OSError, AttributeError):  # a closed console must not end a run
            self.bar.update(c.batch_size)
        early = dist.is_initialized() or time.monotonic() - self.clock < 20  # seconds
        if len(self.losses) < LOG_STEPS and self.unfinished() and early:
            return False
        values = [torch.stack([step[name] for step in self.losses]).mean() for name in losses]
        values += [sum(p.detach().sum() for net in (state.G, state.D) for p in net.parameters()),
                   torch.tensor(time.monotonic() - self.clock, device=values[0].device)]
        all_reduce_mean(values)  # so that several processes stop together
        *values, weights, seconds = [value.item() for value in values]
        if not np.isfinite([*values, weights]).all() or 0 < state.scaler.get_scale() < 1:
            raise FloatingPointError(f"not finite: losses or weights, after {state.images_seen:,} "
                                     "images. Try precision=float32, or half of lr_g and lr_d.")
        state.seconds, self.clock, self.losses = state.seconds + seconds, time.monotonic(), []
        state.history.append({"images": state.images_seen, "seconds": state.seconds})
        state.history[-1] |= dict(zip(losses, values, strict=True))
        self.bar.total = min(c.total_images, 60 * c.max_minutes * state.images_seen / state.seconds)
        return not (rank_and_size()[0] or self.unfinished() and state.seconds < self.snapshot_at)

    def snapshot(self, draw):
        """Save a checkpoint, a strip of the samples of draw() -> samples, scores; print all."""
        state, path = self.state, self.folder / "checkpoint.pt"
        self.snapshot_at = state.seconds + self.interval
        with optional("samples and scores of a snapshot"):
            samples, scores = draw()
            state.history[-1] |= scores
            image_grid(samples[:64], 16).save(self.folder / f"samples-{state.images_seen:09d}.png")
            last = state.history[-1].items()
            print(*(f"{key} {round(x, 3):,}" for key, x in last), sep="  ", flush=True)
        saved = {name: getattr(state, name).state_dict() for name in PARTS}
        saved |= {name: getattr(state, name) for name in COUNTERS} | {"config": vars(state.config)}
        saved |= {"rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]}
        with optional("a snapshot, the next one tries again"):
            torch.save(saved, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)

def load_definitions(path=HERE / "ViTGAN_CIFAR10.ipynb"):
    """The notebook's cells tagged `definition`, run in order, as a module."""
    module = sys.modules["vitgan"] = type(sys)("vitgan")  # an empty module
    for i, cell in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["cells"]):
        if "definition" in cell["metadata"].get("tags", []):
            exec(compile("".join(cell["source"]), f"<cell {i}>", "exec"), module.__dict__)
    return module

def main(words):
    """Train, in as many processes as torchrun starts; leaves weights and samples in a folder."""
    sys.stdout.reconfigure(errors="replace")  # a console that cannot print a character
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    device, vitgan = pick_device(), load_definitions()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        asked = parse_settings(shlex.join(words))
        data = load_images(int(asked.pop("image_size", 32)), asked.pop("data_dir", ""))
        profile, config = vitgan.configure(data, device, **asked)
        folder = run_folder(os.environ.get("VITGAN_RUNS", "runs"), profile, data, config)
        state = vitgan.train(config, data.pixels.to(device), folder)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        sys.exit(f"{error}\n\n{__doc__}")
    if rank_and_size()[0] == 0:
        with optional("the weights, the checkpoint has them, too"):
            vitgan.save_generator(folder / "generator.safetensors", state.G_ema, config,
                                  {"data": data.name, "images seen": state.images_seen})
        print(f"weights and samples: {folder}")

# ---- pictures ----
plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True,
                     "image.interpolation": "nearest"})

def image_grid(images, columns=8, scale=1):
    """uint8 [n, 3, S, S] as one PIL image, enlarged `scale` times, white between the cells."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()
    return ImageOps.scale(Image.fromarray(grid), scale, Image.NEAREST)

def show_images(images, title, columns, ax):
    """Draw uint8 [n, 3, S, S] as a grid."""
    ax.imshow(image_grid(images, columns))
    ax.set_title(title.replace("$", r"\$"), fontsize=10)
    ax.axis("off")

def show_figure(caption):
    """Show the current figure with `caption` below it, which is its alternative text, too."""
    display(plt.gcf(), metadata={"image/png": {"alt": caption}})
    plt.close()
    display(Markdown(f"*{caption}*"))

if __name__ == "__main__":
    main(sys.argv[1:])
