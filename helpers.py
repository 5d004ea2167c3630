"""Everything the ViTGAN notebook needs that is not ViTGAN: devices, data, checkpoints, EMA, metrics, pictures.

Letters in shapes: n images, B batch, S image side, C = 3 channels. Images are either uint8 [n, 3, S, S] in 0..255
(data) or float [B, 3, S, S] in [-1, 1] (networks); `to_uint8` converts the second into the first.
"""

import hashlib
import html
import http.client
import json
import linecache
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import types
import urllib.request
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

# ------------------------------------------------------------------------------------------------ notebook definitions


def load_definitions(path):
    """Run only the cells of the notebook at `path` tagged `definition`, in order; return them as a module.

    Tests, scripts and worker processes use the notebook's own classes this way instead of copies.
    Raises ValueError when the notebook has no such cell.
    """
    path = Path(path).resolve()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if "definition" in c.get("metadata", {}).get("tags", [])]
    if not sources:
        raise ValueError(f"{path.name} has no cell tagged 'definition'; expected the kit's own notebook.")
    module = types.ModuleType(f"{path.stem}_definitions")
    sys.modules[module.__name__] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    for i, source in enumerate(sources):
        name = f"<{path.name}, definition {i}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), module.__dict__)
    return module


# ------------------------------------------------------------------------------------------------- device and precision


def pick_device():
    """The fastest device at hand: 'cuda', else Apple's 'mps', else 'cpu'."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(device, wanted="auto"):
    """(dtype for autocast, whether a GradScaler is needed) on `device`.

    'auto' takes bfloat16 where the hardware has it natively (a T4 only emulates it), else float16 on GPUs,
    else float32, which means no autocast at all.
    """
    if wanted != "auto":
        dtype = getattr(torch, wanted)
    elif device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    elif device.type == "cpu":
        dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    else:
        dtype = torch.float32
    return dtype, dtype == torch.float16 and device.type == "cuda"


def cpu_has_bfloat16():
    """Whether this CPU multiplies bfloat16 matrices natively (AMX or AVX512-BF16); False where it cannot be told."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def pick_profile(device):
    """The profile to run: VITGAN_PROFILE, else 'colab' on a GPU and 'cpu' elsewhere."""
    return os.environ.get("VITGAN_PROFILE") or ("colab" if device.type == "cuda" else "cpu")


@contextmanager
def calm_compiler():
    """torch.compile without its remarks on stderr (no CUDA, deprecations within torch); what fails still raises."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.disabled = before


# ------------------------------------------------------------------------------------------------------ many processes


def join_processes(device):
    """Join the processes that torchrun or accelerate started, if any; returns the device for this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def processes():
    """How many processes train together: 1 unless `join_processes` found more."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this is the first process, which alone writes files and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def average(tensors):
    """Replace each tensor by its mean over all processes, in place; one all-reduce. Alone: nothing to do."""
    if processes() > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = (flat / processes()).split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors)])


def separate_randomness(seed):
    """Seed every process but the first by `seed` and its rank, so that no two draw the same noise."""
    if not is_main():
        torch.manual_seed((seed * 1_000_003 + dist.get_rank()) % 2**63)


@contextmanager
def main_first():
    """Let the first process do the block alone (a download, say), then the others."""
    if not is_main():
        dist.barrier()
    yield
    if is_main() and processes() > 1:
        dist.barrier()


# ------------------------------------------------------------------------------------------------- one run at a time


@contextmanager
def late_interrupts():
    """Yields a list that the first Ctrl-C (or the notebook's stop button) within the block fills; the next interrupts.

    Several processes would stop at different steps and a thread gets no signals: there nothing is put off.
    """
    seen = []
    if processes() > 1 or threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_):
        seen.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def sole_use(folder):
    """Hold `folder` for this process, and for those that train with it, while the block runs.

    RuntimeError when another process holds it. The lock dies with its process; where files cannot be locked (some
    network drives) or written there is none.
    """
    file = lock_file(Path(folder) / "lock") if is_main() else None
    try:
        yield
    finally:
        if file:
            file.close()


def lock_file(path):
    """The file at `path`, open and locked, or None where that cannot be done; RuntimeError if it is locked already."""
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError as error:
        if file:
            file.close()
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise RuntimeError(f"run_dir={str(path.parent)!r} is in use by another training; "
                                   "stop that one first, or choose another run_dir.") from None


# ----------------------------------------------------------------------------------------------------------------- data

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


class Images(NamedTuple):
    """A data set in memory: `pixels` uint8 [n, 3, S, S], what it is called, and whether mirroring keeps its meaning."""

    pixels: torch.Tensor
    name: str
    mirrorable: bool


def load_images(size, data_dir="", root="data", limit_seconds=10):
    """The training images as `Images` of side `size` pixels.

    With `data_dir`, every image below that folder ("digits": scikit-learn's); else CIFAR-10's training split,
    downloaded to `root`; else, when that is out of reach after `limit_seconds`, scikit-learn's digits, with a warning.
    """
    if data_dir:
        data = load_digits(size) if data_dir == "digits" else load_folder(data_dir, size)
        if len(data.pixels) == 1:
            raise ValueError(f"data_dir={data_dir!r} holds one readable image; expected at least 2, better thousands.")
        return data
    try:
        return load_cifar10(size, root, limit_seconds)
    except OSError as error:
        warnings.warn(f"CIFAR-10 could not be had ({error}); going on with scikit-learn's 8x8 digits instead. "
                      "Set data_dir to a folder of images to train on those.", stacklevel=2)
        return load_digits(size)


def load_cifar10(size, root="data", limit_seconds=10):
    """CIFAR-10's 50,000 training images. OSError when they are neither in `root` nor to be had (see `download`)."""
    from torchvision.datasets import CIFAR10

    try:
        arrays = CIFAR10(root).data
    except RuntimeError:  # not there, or not whole
        download(CIFAR10_URL, Path(root) / CIFAR10.filename, CIFAR10_SHA256, limit_seconds)
        arrays = CIFAR10(root, download=True).data  # which only unpacks
    return Images(resize_all(arrays, size), "CIFAR-10", True)


def download(url, path, sha256, seconds=10):
    """Fetch `url` to `path`, unless it is there: whole and with that SHA-256, or not at all. OSError says why.

    Given up when `seconds` pass without another 100 kB: a server that drips restarts the time-outs of its socket.
    """
    path = Path(path)
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return
    print(f"downloading {url}", flush=True)
    parts, end = [], []

    def fetch():
        try:
            with urllib.request.urlopen(url, timeout=seconds) as answer:
                while part := answer.read(100_000):
                    parts.append(part)
            end.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            end.append(first_line(error))

    thread, before = threading.Thread(target=fetch, daemon=True), -1
    thread.start()
    while thread.is_alive() and len(parts) > before:
        before = len(parts)
        thread.join(seconds)
    if not end:
        raise OSError(f"{url} gave less than 100 kB within {seconds:g} s")
    if end[0]:
        raise OSError(f"{url} could not be downloaded ({end[0]})")
    content = b"".join(parts)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise OSError(f"{url} gave {len(content):,} bytes with SHA-256 {found}; expected {sha256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content)


def load_digits(size):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, enlarged to `size`, white on black."""
    from sklearn.datasets import load_digits as sklearn_digits

    grey = (sklearn_digits().images * 255 / 16).round().astype(np.uint8)
    return Images(resize_all(np.repeat(grey[..., None], 3, axis=-1), size), "digits (scikit-learn)", False)


def load_folder(folder, size):
    """Every image below `folder` (class folders or not), as RGB, cut to its central square and resized to `size`.

    Of animations the first picture counts; what is transparent becomes white. Unreadable files are named in a
    warning and skipped. FileNotFoundError when there is no folder or no readable image.
    """
    from PIL import Image

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={str(folder)!r} is not a folder; expected a folder that holds images.")
    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    arrays, unreadable = [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings):
        try:
            with Image.open(path) as image:
                arrays.append(square(to_rgb(image), size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable.append(f"{path.relative_to(folder)} ({type(error).__name__})")
    if unreadable:
        names = ", ".join(unreadable[:5]) + (f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else "")
        warnings.warn(f"skipped {len(unreadable)} unreadable file(s) in {folder}: {names}", stacklevel=3)
    if not arrays:
        raise FileNotFoundError(f"data_dir={str(folder)!r} holds no readable image; "
                                f"expected files ending in {', '.join(sorted(endings))}.")
    return Images(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), folder.name, True)


def to_rgb(image):
    """A PIL image as 8-bit RGB, upright as its camera noted, on white; 16-bit grey is scaled, not clipped."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def square(image, size):
    """The central square of a PIL image at `size` x `size`, uint8 [S, S, 3]: pixel means down, bicubic up."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.BOX if side > size else Image.BICUBIC))


def resize_all(arrays, size):
    """uint8 [n, h, w, 3] to a uint8 tensor [n, 3, S, S]."""
    from PIL import Image

    if arrays.shape[1] != size:
        arrays = np.stack([square(Image.fromarray(a), size) for a in arrays])
    return torch.from_numpy(np.ascontiguousarray(arrays)).permute(0, 3, 1, 2).contiguous()


def to_uint8(images):
    """float [B, 3, S, S] in [-1, 1] (values outside are clamped) to uint8 in 0..255, on the CPU."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------------------------ EMA


def ema_decay(batch_size, images_seen, half_life, ramp=0.05):
    """The factor that halves old weights every `half_life` images, shorter (`ramp` x images seen) at the start."""
    half_life = min(half_life, ramp * images_seen)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(ema, model, decay):
    """ema <- decay * ema + (1 - decay) * model for every parameter; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for kept, new in zip(ema.buffers(), model.buffers()):
        kept.copy_(new)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def rng_state():
    """The state of torch's random generators, on the CPU and on every GPU."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state):
    """Restore what `rng_state` returned; GPU states are left alone when the number of GPUs differs."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def previous(path):
    """Where `save_checkpoint` keeps the checkpoint before the one at `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def run_folder(profile, data_name, seed=0):
    """Where a run of `profile` on the data set `data_name` is kept, below VITGAN_RUNS or runs/; each seed has its own."""
    words = [profile, *re.findall(r"\w+", data_name.lower()), *([f"seed{seed}"] if seed else [])]
    return Path(os.environ.get("VITGAN_RUNS", "runs")) / "-".join(words)


def first_line(error):
    """An exception as its type and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0]}"


@contextmanager
def whole(path):
    """A path beside `path` for the block to write; it takes the place of `path` if the block ends well, and goes if not."""
    temporary = Path(path).with_suffix(".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_may_refuse(later):
    """A full disk or a read-only folder within the block is one warning, which says that `later` it is tried again."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"not saved ({first_line(error)}); nothing is lost while this process lives: make room, "
                      f"{later}.", stacklevel=3)


def save_checkpoint(path, state):
    """Write `state` to `path` so that a crash at any moment leaves a whole checkpoint; the one before is kept.

    OSError (a full disk, say) leaves what was there. A damaged checkpoint never takes the place of the one before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and damage(path) is None:
            os.replace(path, previous(path))


def damage(path):
    """What is wrong with the bytes of the checkpoint at `path`, or None: every record's CRC is checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return damaged and f"bad checksum in {damaged}"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a file
        return first_line(error)


def load_checkpoint(path):
    """The newest whole checkpoint at `path`, else the previous one with a warning, else None.

    Only tensors and plain values are read (weights_only=True), and only from a file without damage. When files are
    there but none is whole, raises RuntimeError.
    """
    candidates = [p for p in (Path(path), previous(Path(path))) if p.exists()]
    for candidate in candidates:
        if (problem := damage(candidate)) is None:
            try:
                return torch.load(candidate, map_location="cpu", weights_only=True)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the older one may be whole
                problem = first_line(error)
        warnings.warn(f"checkpoint {candidate} cannot be read ({problem})", stacklevel=2)
    if candidates:
        raise RuntimeError(f"no readable checkpoint at {path}; delete {Path(path).parent} to start anew.")
    return None


def save_weights(path, tensors, about):
    """Write a dict of tensors (matrices in half precision) and `about`, a dict of plain values, as safetensors; returns the SHA-256."""
    from safetensors.torch import save

    half = {name: (t.half() if t.ndim > 1 else t).cpu().contiguous() for name, t in tensors.items()}
    content = save(half, metadata={"about": json.dumps(about)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path, sha256=""):
    """(tensors in float32, about) as `save_weights` wrote them. ValueError for another SHA-256 or a file that is none of them."""
    from safetensors import SafetensorError, safe_open

    if sha256 and (found := hashlib.sha256(Path(path).read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{path} has SHA-256 {found}; expected {sha256}. Delete the file and get it again.")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}, json.loads(file.metadata()["about"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no weights of this kit ({first_line(error)}); "
                         "expected a .safetensors file written by save_generator.") from None


# ---------------------------------------------------------------------------------------------------------------- Drive

MIRRORED = ("checkpoint.pt", "samples/*.png", "generator.safetensors", "metrics.json")
out_of_reach = set()  # folders whose loss has been told


def drive_folder(run_dir, mount_point="drive"):
    """This run's folder on Google Drive, mounted; its files are fetched when they have seen more images than run_dir's.

    None, with a warning, when there is no Drive to be had: training needs none.
    """
    folder = Path(mount_point).resolve() / "MyDrive" / "ViTGAN" / Path(run_dir).name
    try:
        from google.colab import drive

        drive.mount(str(folder.parents[2]))
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        if images_seen(folder) > images_seen(run_dir):
            Path(run_dir).mkdir(parents=True, exist_ok=True)
            copy_run(folder, run_dir)
    except Exception as error:  # noqa: BLE001 - Colab raises what it likes
        warnings.warn(f"Google Drive cannot be used ({first_line(error)}); going on without it.", stacklevel=2)
        return None
    return folder


def images_seen(folder):
    """How far the checkpoint in `folder` is, 0 without one."""
    state = load_checkpoint(Path(folder) / "checkpoint.pt")
    return state["images_seen"] if state else 0


def mirror(folder, to):
    """`copy_run` that never raises: False, with one warning until it works again, while `to` is out of reach."""
    try:
        copy_run(folder, to)
        out_of_reach.discard(to)
    except OSError as error:
        if to not in out_of_reach:
            warnings.warn(f"{to} is out of reach ({first_line(error)}); going on, with everything in {folder}.", stacklevel=2)
        out_of_reach.add(to)
    return to not in out_of_reach


def copy_run(folder, to, attempts=3, wait=1.0):
    """Copy what is new of a run in `folder` into `to`, each file whole or not at all; OSError when all attempts fail."""
    for attempt in range(attempts):
        try:
            for pattern in MIRRORED:
                for path in sorted(Path(folder).glob(pattern)):
                    copy_new(path, Path(to) / path.relative_to(folder))
            return
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(wait)


def copy_new(path, target):
    """Copy the file `path` over `target` unless that is as large and not older."""
    if target.exists() and target.stat().st_size == path.stat().st_size and target.stat().st_mtime >= path.stat().st_mtime:
        return
    target.parent.mkdir(exist_ok=True)  # parents=True would make a lost mount's folders on the local disk
    with whole(target) as temporary:
        shutil.copyfile(path, temporary)


# -------------------------------------------------------------------------------------------------------------- metrics


def sliced_wasserstein(a, b, projections=256, seed=20_26):
    """Sliced Wasserstein-2 distance between two sets of images, uint8 [n, 3, S, S], in grey levels (0..255) per pixel.

    Both are projected on the same fixed random directions (drawn from `seed`, never used in training); in one
    dimension the optimal transport is a sort. The larger set is cut to the size of the smaller one.
    """
    n = min(len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(a[0].numel(), projections, generator=generator), dim=0)
    pa, pb = ((x[:n].cpu().float().flatten(1) @ directions).sort(0).values for x in (a, b))
    return float((pa - pb).square().mean().sqrt())


def nearest(images, pool, batch=64, skip_self=False):
    """For each image, the index of the closest in `pool` and the root-mean-square distance per pixel, 0..255.

    With skip_self, identical images do not count.
    """
    flat, indices, distances = pool.flatten(1).float(), [], []
    for part in images.flatten(1).float().split(batch):
        distance = torch.cdist(part, flat, compute_mode="donot_use_mm_for_euclid_dist" if skip_self else "use_mm_for_euclid_dist")
        if skip_self:
            distance[distance == 0] = math.inf
        distance, index = distance.min(1)
        indices.append(index)
        distances.append(distance / math.sqrt(flat.shape[1]))
    return torch.cat(indices), torch.cat(distances)


def spread(images):
    """Standard deviation across the batch at each pixel, averaged, in [-1, 1] units: near 0 means mode collapse."""
    return float((images.float() / 127.5).std(0).mean())


def fixed_subset(images, n):
    """The same n images (or all, if fewer) of uint8 [N, 3, S, S] every time, shuffled, on the CPU."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:n]
    return images[order.to(images.device)].cpu()


def fidelity(G, latent_dim, images, n):
    """FID, IS and KID by torch-fidelity of n samples of G against all `images`, uint8 [N, 3, S, S].

    The published CIFAR-10 protocol is n = 50,000 against the 50,000 training images, unmirrored. Returns a dict.
    Raises OSError when the Inception weights can be neither found nor downloaded.
    """
    import torch_fidelity

    class Sampler(torch.nn.Module):
        def forward(self, z):
            return to_uint8(G(z)).to(z.device)

    class Pixels(torch.utils.data.Dataset):
        pixels = images.cpu()  # worker processes cannot read from the GPU

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, i):
            return self.pixels[i]

    cuda = next(G.parameters()).is_cuda
    found = torch_fidelity.calculate_metrics(
        input1=torch_fidelity.GenerativeModelModuleWrapper(Sampler(), latent_dim, "normal", 0), input1_model_num_samples=n,
        input2=Pixels(), cuda=cuda, fid=True, isc=True, kid=True, kid_subset_size=min(1000, n, len(images)), cache=False,
        verbose=False)
    return {name: float(value) for name, value in found.items()} | {"fid_samples": n, "fid_real": len(images)}


# ------------------------------------------------------------------------------------------------------------- pictures

plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
                     "axes.spines.right": False, "image.interpolation": "nearest"})


def grid(images, columns=8):
    """uint8 [n, 3, S, S] to one uint8 picture [h, w, 3] with a pixel of white between images."""
    from torchvision.utils import make_grid

    return make_grid(images, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()


def show_images(images, title="", columns=8, inches=0.8, ax=None):
    """Draw uint8 [n, 3, S, S] as one grid; returns the axes."""
    rows = math.ceil(len(images) / columns)
    ax = ax or plt.subplots(figsize=(columns * inches, rows * inches + 0.4))[1]
    ax.imshow(grid(images, columns))
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    return ax


def shareable(images, cell=4):
    """The images, or with VITGAN_HIDE_REAL=1 their cell x cell means, to share a notebook without sharing the data."""
    if not os.environ.get("VITGAN_HIDE_REAL"):
        return images
    means = F.avg_pool2d(images.float(), cell)
    return F.interpolate(means, scale_factor=cell).round().to(torch.uint8)


def show_real(images, title="", columns=8):
    """`show_images` for pictures out of the training data."""
    hidden = " (as 4×4 means: VITGAN_HIDE_REAL is set)" if os.environ.get("VITGAN_HIDE_REAL") else ""
    return show_images(shareable(images.cpu()), title + hidden, columns)


def picture(images, columns=8, enlarge=3):
    """A grid of uint8 images as a PIL picture, each pixel `enlarge` pixels wide."""
    from PIL import Image

    flat = Image.fromarray(grid(images, columns))
    return flat.resize((flat.width * enlarge, flat.height * enlarge), Image.NEAREST)


def save_png(path, images, columns=8):
    """Write a grid of uint8 images as a PNG."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        picture(images, columns).save(temporary, "png")


def photo_crops(n, size):
    """n fixed, colourful crops of scikit-learn's two sample photographs (CC BY 2.0): uint8 [n, 3, S, S]."""
    from sklearn.datasets import load_sample_images

    photos, generator = load_sample_images().images, np.random.default_rng(4)
    corners = [(i % 2, *(generator.integers(0, limit) for limit in (427 - 160, 640 - 160))) for i in range(n)]
    return torch.cat([resize_all(photos[i][None, y : y + 160, x : x + 160], size) for i, y, x in corners])


def draw_networks():
    """Draw generator and discriminator as two rows of boxes, from latent and image to image and logit."""
    from matplotlib.patches import FancyBboxPatch

    green, blue, grey, pink = "#d9ead3", "#d6e4f5", "#eeeeee", "#f8dcdc"
    g_boxes = [("latent $z$\n[B, 128]", grey), ("mapping\nnetwork", green), ("$w$", grey),
               ("L × block\nSLN · attention\nSLN · MLP", green), ("SLN:\n$y$ [B, N, D]", green),
               ("patch SIREN\n$f(E, y)$", green), ("patches\n→ image", grey), ("fake\n[B, 3, S, S]", pink)]
    d_boxes = [("real or\nfake", pink), ("DiffAugment", blue), ("overlapping\npatches", blue),
               ("ISN linear\n+ positions", blue), ("L × block\nLN · L2 attention\nLN · MLP (ISN)", blue),
               ("LN, class token\nor mean", blue), ("ISN linear", blue), ("logit\n[B]", grey)]
    arrow = dict(arrowstyle="->", color="#333333")
    w_arrow = dict(arrowstyle="->", linestyle="--", color="#38761d", connectionstyle="arc3,rad=-0.45")

    fig, ax = plt.subplots(figsize=(13, 4.5), gridspec_kw=dict(left=0, right=1, bottom=0, top=1))
    for y, boxes in [(2.6, g_boxes), (0.4, d_boxes)]:
        for i, (text, colour) in enumerate(boxes):
            left, middle = 1.62 * i, y + 0.475
            ax.add_patch(FancyBboxPatch((left, y), 1.3, 0.95, boxstyle="round,pad=0.06",
                                        facecolor=colour, edgecolor="#555555"))
            ax.text(left + 0.65, middle, text, ha="center", va="center", fontsize=9.5)
            if i and (i != 3 or boxes is d_boxes):  # w is no token
                ax.annotate("", (left - 0.06, middle), (left - 0.26, middle), arrowprops=arrow)
    for i, text in [(3, "positions [N, D]"), (5, "Fourier features E [P², D]")]:
        centre = 1.62 * i + 0.65
        ax.text(centre, 2.12, text, ha="center", va="center", fontsize=9.5)
        ax.annotate("", (centre, 2.54), (centre, 2.22), arrowprops=arrow)
    for i in (3, 4):  # w enters every SLN from above
        ax.annotate("", (1.62 * i + 0.65, 3.6), (1.62 * 2 + 0.65, 3.6), arrowprops=w_arrow)
    ax.text(1.62 * 4 + 0.8, 3.95, "$w$ modulates every SLN", fontsize=9.5, color="#38761d")
    ax.text(-0.05, 4.0, "Generator", fontsize=12, weight="bold")
    ax.text(-0.05, 1.75, "Discriminator", fontsize=12, weight="bold")
    ax.set(xlim=(-0.2, 12.84), ylim=(0.2, 4.6))
    ax.axis("off")


def show(text):
    """Show the current figure with `text` as its caption and its alternative text, for those who cannot see it."""
    from IPython.display import display

    figure = plt.gcf()
    display(figure, metadata={"image/png": {"alt": text}})
    plt.close(figure)
    caption(text)


def caption(text):
    """Show a line of Markdown below a figure."""
    from IPython.display import Markdown, display

    display(Markdown(f"*{text}*"))


def hint_at_order():
    """From now on a NameError in the notebook says that cells above must run first."""
    from IPython import get_ipython

    def explain(shell, kind, error, trace, tb_offset=None):
        error.args = (f"{error}; if it is no slip of the pen, a cell above makes it: run all cells above this one first "
                      "(Colab: Runtime > Run before; Jupyter: Run > Run All Above Selected Cell).",)
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    if get_ipython():
        get_ipython().set_custom_exc((NameError,), explain)


def live_display():
    """A place in the notebook's output whose picture can be replaced: .update(picture)."""
    from IPython.display import Markdown, display

    return display(Markdown(""), display_id=True)


def save_json(path, values):
    """Write a dict as readable JSON."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- the notebook from a terminal


def run_notebook(path, out):
    """Execute the notebook at `path`, showing what its cells print as they print it, and write it executed to `out`.

    What was computed before an error is written too, then the error is raised.
    """
    import nbformat
    from nbclient import NotebookClient

    class LiveClient(NotebookClient):
        def process_message(self, message, cell, cell_index):
            content = message["content"]
            if message["msg_type"] == "stream":
                print(content["text"], end="", flush=True)
            elif message["msg_type"] == "comm_msg":  # the progress bar's text
                text = content["data"].get("state", {}).get("value")
                if isinstance(text, str) and "images" in text:
                    print(f"\r{html.unescape(text)} ", end="", flush=True)
            return super().process_message(message, cell, cell_index)

    notebook = nbformat.read(path, as_version=4)
    client = LiveClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(Path(path).parent)}},
                        on_cell_start=lambda cell, cell_index: announce(cell, cell_index, len(notebook.cells)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    try:
        client.execute()
    finally:
        nbformat.write(notebook, out)


def announce(cell, index, total):
    """Print which code cell starts."""
    if cell["cell_type"] == "code":
        first = next((line for line in cell["source"].splitlines() if not line.startswith(("import ", "from "))), "imports")
        print(f"\n[{index + 1}/{total}] {first[:100]}", flush=True)


def train_only(notebook):
    """The training section without the notebook around it, for torchrun and accelerate.

    Profile, data and folder are what the notebook would take, so it goes on with the evaluation afterwards.
    """
    device = join_processes(pick_device())
    vitgan, profile = load_definitions(notebook), pick_profile(device)
    config = vitgan.Config.profile(profile)
    with main_first():
        data = load_images(config.image_size, os.environ.get("VITGAN_DATA_DIR", config.data_dir))
    run = vitgan.train(vitgan.adapt(config, data), data.pixels.to(device), run_folder(profile, data.name))
    if is_main():
        print(f"{run.images_seen:,} images in {run.seconds / 60:.1f} minutes by {processes()} process(es); checkpoint in {run.folder}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__" and sys.argv[1:] == ["train"]:  # torchrun --nproc-per-node=2 helpers.py train
    train_only(Path(__file__).resolve().parent / "ViTGAN_CIFAR10.ipynb")
elif __name__ == "__main__":  # python helpers.py [executed.ipynb]
    here = Path(__file__).resolve().parent
    target = Path(sys.argv[1] if len(sys.argv) > 1 else here / "runs" / "ViTGAN_CIFAR10.ipynb")
    run_notebook(here / "ViTGAN_CIFAR10.ipynb", target)
    print(f"\nexecuted notebook: {target}; pictures, weights and metrics.json: in {os.environ.get('VITGAN_RUNS', here / 'runs')}")
