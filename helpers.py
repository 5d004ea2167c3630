"""python helpers.py [NAME=VALUE ...] runs the notebook: trains, evaluates, leaves everything in one folder.
  profile=cpu|tiny|colab|paper|smoke   data_dir=FOLDER (your own images)   minutes=30   seed=1
  and every field of Config in section 2 of the notebook, for example lr_g=0.003 image_size=24
Helpers: devices, data, checkpoints, figures. Images are uint8 [n, 3, S, S], or float [B, 3, S, S] in [-1, 1] in networks.
"""
import ast
import asyncio
import html
import json
import linecache
import math
import os
import re
import shlex
import signal
import socket
import sys
import timeit
import types
import warnings
from collections import namedtuple
from contextlib import contextmanager, nullcontext
from pathlib import Path

import filelock
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from IPython.display import Markdown, display
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import gaussian_blur
from torchvision.utils import make_grid

plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3,
                     "axes.spines.top": False, "axes.spines.right": False, "image.interpolation": "nearest"})


def load_definitions(path):
    """Run the notebook's cells tagged `definition`, in order, and return them as a module (for tests and scripts)."""
    path = Path(path).resolve()
    module = types.ModuleType(f"{path.stem}_definitions")
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))  # the notebook imports helpers
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if "definition" in cell["metadata"].get("tags", []):
            source, name = "".join(cell["source"]), f"<{path.name}, cell {i}>"
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # for tracebacks
            exec(compile(source, name, "exec"), module.__dict__)
    return module


def parse_settings(text):
    """'lr_g=0.003 data_dir="my photos"' as {"lr_g": 0.003, "data_dir": "my photos"}; ValueError for a word without =."""
    settings = {}
    for name, equals, value in (word.partition("=") for word in shlex.split(text)):
        if not equals:
            raise ValueError(f"{name!r} is no setting; expected NAME=VALUE, for example lr_g=0.003.")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value  # plain text needs no quotes
    return settings


def pick_device():
    """The GPU (CUDA, MPS, XPU), if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(device, precision="auto"):
    """The dtype for autocast. "auto": bfloat16 or else float16 on CUDA; on a CPU the faster of bfloat16 and float32."""
    if precision != "auto" or device.type not in ("cuda", "cpu"):
        return getattr(torch, precision, torch.float32)
    if device.type == "cuda":  # a T4 only emulates bfloat16
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    a = torch.rand(512, 512)
    return min((a, a.bfloat16()), key=lambda a: min(timeit.repeat(lambda: a @ a, number=1, repeat=5))).dtype


def join_processes(device):
    """Join the processes that torchrun started, if any; returns the device of this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if dist.is_initialized() and device.type == "cuda" else device


def rank_and_size():
    """(rank of this process, number of processes); (0, 1) unless `join_processes` found more."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors):
    """Replace each tensor by its mean over all processes, in place; alone, do nothing."""
    for tensor in tensors if dist.is_initialized() else []:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


Images = namedtuple("Images", ["pixels", "name"])  # uint8 [n, 3, S, S] and what to call them


def load_images(size, data_dir=""):
    """`Images` at size x size: all below the folder `data_dir`; "": CIFAR-10, or with a warning, and for "digits": digits."""
    socket.setdefaulttimeout(20)  # a server that stays silent must not hang the notebook
    if data_dir and data_dir != "digits":
        return load_folder(data_dir, size)
    if not data_dir:
        try:
            return Images(resize(CIFAR10("data", download=True).data, size), "CIFAR-10")
        except (OSError, RuntimeError) as error:
            warnings.warn(f"CIFAR-10 could not be downloaded ({error}); using scikit-learn's digits instead. "
                          "Set data_dir to a folder of images to train on those.", stacklevel=2)
    gray = (load_digits().images * 255 / 16).round().astype(np.uint8)
    return Images(resize(gray[..., None].repeat(3, -1), size), "digits")


def load_folder(folder, size):
    """All images below `folder` as `Images`; unreadable files are skipped with a warning."""
    arrays, unreadable = [], []
    for path in sorted(p for p in Path(folder).expanduser().rglob("*") if p.suffix.lower() in Image.registered_extensions()):
        try:
            with Image.open(path) as image:
                arrays.append(square(image, size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            unreadable.append(path.name)
    if unreadable:
        warnings.warn(f"skipped {len(unreadable)} unreadable file(s) in {folder}: {', '.join(unreadable[:5])}", stacklevel=3)
    if len(arrays) < 2:
        raise FileNotFoundError(f"data_dir={str(folder)!r}: {len(arrays)} readable images; expected 2, better thousands.")
    return Images(resize(arrays, size), Path(folder).resolve().name)


def square(image, size):
    """Any PIL image -> uint8 [size, size, 3]: upright, transparency on white, 16-bit gray scaled, center-cropped."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.BOX if min(image.size) > size else Image.BICUBIC))


def resize(arrays, size):
    """uint8 [h, w, 3] arrays -> uint8 tensor [n, 3, size, size]."""
    arrays = [a if a.shape[:2] == (size, size) else square(Image.fromarray(a), size) for a in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_uint8(images):
    """float [B, 3, S, S] in [-1, 1] -> uint8 on the CPU, clamped."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def photo_crops(n, size):
    """n fixed crops of scikit-learn's two sample photographs (CC BY 2.0): uint8 [n, 3, S, S]."""
    photos, rng = load_sample_images().images, np.random.default_rng(4)
    corners = [(i % 2, *(rng.integers(0, limit) for limit in (427 - 160, 640 - 160))) for i in range(n)]
    return torch.cat([resize(photos[i][None, y : y + 160, x : x + 160], size) for i, y, x in corners])


def fixed_subset(images, n):
    """The same n images (at most all), shuffled, on the CPU, in every run."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:n]
    return images[order.to(images.device)].cpu()


def save_checkpoint(path, state):
    """Write `state` beside `path` and move it there; the checkpoint before it is kept as *.previous.pt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    if path.exists():
        os.replace(path, path.with_suffix(".previous.pt"))
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(path):
    """What `save_checkpoint` wrote last, or, with a warning, before; None without either, RuntimeError if none is readable."""
    candidates = [p for p in (Path(path), Path(path).with_suffix(".previous.pt")) if p.exists()]
    for candidate in candidates:
        try:
            return torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the older one may be whole
            warnings.warn(f"{candidate} cannot be read ({type(error).__name__}); trying the checkpoint before it.", stacklevel=2)
    if candidates:
        raise RuntimeError(f"no readable checkpoint in {Path(path).parent}; delete that folder to start anew.")


@contextmanager
def sole_use(folder):
    """Lock `folder` for this process (and those that train with it) while the block runs; RuntimeError if another has it."""
    try:
        with filelock.FileLock(Path(folder) / "lock", timeout=0) if rank_and_size()[0] == 0 else nullcontext():
            yield
    except filelock.Timeout:
        raise RuntimeError(f"run_dir={str(folder)!r} is in use by another training; stop it or choose another.") from None


@contextmanager
def first_interrupt():
    """Yields a list to which the first Ctrl-C (Jupyter's stop button) in the block is appended; a second one raises."""
    seen, before = [], signal.getsignal(signal.SIGINT)
    if not dist.is_initialized():  # several processes would stop at different steps
        signal.signal(signal.SIGINT, lambda *_: (seen.append(True), signal.signal(signal.SIGINT, before)))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def image_grid(images, columns=8, scale=1):
    """uint8 [n, 3, S, S] as one PIL image with a white pixel between cells, enlarged `scale` times."""
    grid = Image.fromarray(make_grid(images, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy())
    return grid.resize((grid.width * scale, grid.height * scale), Image.NEAREST)


def show_images(images, title="", columns=8, ax=None):
    """Draw uint8 [n, 3, S, S] as a grid; returns the axes."""
    ax = ax or plt.subplots(figsize=(0.8 * columns, 0.8 * math.ceil(len(images) / columns) + 0.4))[1]
    ax.imshow(image_grid(images, columns))
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    return ax


def publishable(images):
    """The images, or, with VITGAN_HIDE_REAL=1, blurred: to share a notebook without sharing its data."""
    return gaussian_blur(images, 9, sigma=2.0) if os.environ.get("VITGAN_HIDE_REAL") else images


def show_figure(caption):
    """Show the current figure with `caption` below it and as its alternative text."""
    display(plt.gcf(), metadata={"image/png": {"alt": caption}})
    plt.close()
    display(Markdown(f"*{caption}*"))


def run_notebook(path):
    """Execute the notebook and show its progress; write it, also after an error, into the run's folder; returns where."""
    import nbclient
    import nbformat

    class LiveClient(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            content = message["content"]
            bar = content.get("data", {}).get("state", {}).get("value")  # the text of tqdm's progress bar
            if message["msg_type"] == "stream":
                print(content["text"], end="", flush=True)
            elif message["msg_type"] == "comm_msg" and isinstance(bar, str) and "images" in bar:
                print("\r" + html.unescape(bar), end="", flush=True)
            return super().process_message(message, cell, cell_index)
    def show_title(cell, cell_index):
        for title in re.findall("^## .*", cell.source, re.M) if cell.cell_type == "markdown" else []:
            print("\n" + title, flush=True)
    def pass_on(loop):  # the kernel does not hear the terminal's Ctrl-C; a second one ends everything
        loop.remove_signal_handler(signal.SIGINT)
        os.kill(client.km.provisioner.pid, signal.SIGINT)
    def listen(notebook):  # instead of nbclient, which would end the kernel
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, pass_on, asyncio.get_running_loop())
    notebook = nbformat.read(path, as_version=4)
    client = LiveClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}},
                        extra_arguments=["--IPKernelApp.log_level=ERROR"], on_cell_start=show_title,
                        on_notebook_start=listen if os.name == "posix" else None)
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        sys.exit(f"{error.ename}: {error.evalue}")
    finally:
        printed = "\n".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
        out = path.parent / re.findall("^run folder: (.*)", "run folder: runs\n" + printed, re.M)[-1] / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out)
    return out


def main(words):
    """`python helpers.py`, see above; under torchrun the training section alone, which the notebook then continues."""
    notebook = Path(__file__).resolve().parent / "ViTGAN_CIFAR10.ipynb"
    if {"-h", "--help"} & {*words}:
        return print(__doc__)
    try:
        settings, vitgan = parse_settings(shlex.join(words)), load_definitions(notebook)
        if settings.get("data_dir", "") not in ("", "digits"):  # a relative folder is the caller's
            settings["data_dir"] = str(Path(str(settings["data_dir"])).expanduser().resolve())
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return vitgan.train_from(settings)
        profile, chosen = vitgan.choices(settings)
        vitgan.Config.profile(profile, **chosen)  # a wrong word fails here, in one sentence
        os.environ["VITGAN_SETTINGS"] = shlex.join(f"{name}={value}" for name, value in settings.items())
        print(f"\neverything of this run: {run_notebook(notebook).parent}")
    except ValueError as error:
        sys.exit(f"{error}\n\n{__doc__}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint.")


if __name__ == "__main__":
    main(sys.argv[1:])
