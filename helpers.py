"""What surrounds ViTGAN: devices, data, runs, the command, figures. Images are uint8 [n, 3, S, S].

python helpers.py [NAME=VALUE ...] trains; names: profile, data_dir, image_size, run_dir (a folder
of a run to go on with), and the fields of Config in the notebook.
"""

import ast
import copy
import hashlib
import inspect
import io
import itertools
import json
import linecache
import logging
import os
import re
import shlex
import signal
import symtable
import sys
import tempfile
import textwrap
import time
import timeit
import traceback
import types
import warnings
from collections import namedtuple
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import Markdown, display
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10
from torchvision.utils import make_grid
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
tqdm.monitor_interval = 0  # its thread can keep a process from ending


# ---- devices and several processes ----


@contextmanager
def optional(what, *errors):
    """One of these errors in the block becomes a warning: training can do without `what`."""
    try:
        yield
    except errors as error:
        reason = f"{type(error).__name__}: {error!s:.300}"
        warnings.warn(f"left out: {what} ({reason})", stacklevel=3)


def pick_device():
    """This process's GPU (CUDA, MPS, XPU), if this torch can use one, else the CPU."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    with optional(f"{device}, the CPU takes its place", RuntimeError):  # no kernels for an old GPU
        torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)).cpu()
        return device
    return torch.device("cpu")


def number_format(device, precision="auto"):
    """The dtype of matrix products; "auto" is the fastest that is safe on this device."""
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":  # a T4 only emulates bfloat16
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type != "cpu":
        return torch.float32
    factors = torch.rand(512, 512), torch.rand(512, 512).bfloat16()
    seconds = [min(timeit.repeat(lambda a=a: a @ a, number=1, repeat=5)) for a in factors]
    return factors[seconds.index(min(seconds))].dtype


def random_states():
    """What the next random numbers of the CPU and of a CUDA device depend on."""
    on_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *on_gpu]


def set_random_states(states, seed):
    """Go on as random_states found it; a device that it does not know draws from `seed`."""
    torch.manual_seed(seed)
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def compilable(step, *networks):
    """step(state, images); if its first call fails, it is repeated with the networks uncompiled."""
    torch.compiler.set_stance("default")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA" on a CPU
    calls = itertools.count()

    def guarded(state, images):
        if next(calls):
            return step(state, images)
        before, states = copy.deepcopy(state.state_dict()), random_states()
        say("compiling the networks, a minute or two")
        try:
            return step(state, images)
        except Exception as error:  # the compiler's; an error of the step itself comes again
            reason = str(error).strip().split("\n")[0][:200]
            warnings.warn(f"left out: torch.compile ({reason})", stacklevel=2)
        torch.compiler.set_stance("force_eager")
        for network in networks:
            network.train().requires_grad_(True)
        state.load_state_dict(before)
        set_random_states(states, seed=0)
        return step(state, images)

    return guarded


def rank_and_size():
    """(rank of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(batch_size):
    """How many images of a batch are this process's."""
    size = rank_and_size()[1]
    if batch_size % size:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {size} processes")
    return batch_size // size


def all_reduce_mean(tensors):
    """Replace each tensor by its mean over all processes, in place; alone, do nothing."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def say(text):
    """Print, once for all processes; a terminal that was closed ends nothing."""
    if rank_and_size()[0] == 0:
        with suppress(OSError):
            print(text, flush=True)


# ---- data ----

# labels: int64 [n] or None; digest: which images these are
Images = namedtuple("Images", "pixels name labels digest", defaults=[None, ""])


def load_images(size, data_dir=""):
    """The images below a folder; "digits": scikit-learn's; "": CIFAR-10, or else digits."""
    if data_dir and (data_dir != "digits" or os.path.isdir(data_dir)):
        return load_folder(Path(data_dir).expanduser(), size)
    if not data_dir:
        with optional("CIFAR-10, digits take its place; or set data_dir", OSError, RuntimeError):
            data = CIFAR10("data", download=True)
            pixels, labels = to_tensor(data.data, size), torch.tensor(data.targets)
            return Images(pixels, "CIFAR-10", labels, "CIFAR-10")
    digits = load_digits()
    gray = (digits.images * 255 / 16).round().astype(np.uint8)
    pixels, labels = to_tensor(gray[..., None].repeat(3, -1), size), torch.tensor(digits.target)
    return Images(pixels, "digits", labels, "digits")


def load_folder(folder, size):
    """All images below `folder` that Pillow reads; labels: which of its folders, if all are in one.

    Says how many files it left out. Raises FileNotFoundError, or ValueError for fewer than two.
    """
    if not folder.is_dir():
        what = "a file (unpack an archive first)" if folder.exists() else "not there"
        where = f"expected a folder at {folder.absolute()}"
        raise FileNotFoundError(f"data_dir={str(folder)!r} is {what}; {where}.")
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    names = [name for name in names if not any(part[0] == "." for part in name.parts)]
    pixels, digest = np.empty((len(names), size, size, 3), np.uint8), hashlib.sha256()
    kept, refused = [], []
    for name in tqdm(names, "reading images", delay=5, leave=False):
        try:
            content = (folder / name).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.draft("RGB", (2 * size, 2 * size))  # JPEG: no more pixels than needed
                pixels[len(kept)] = to_square_rgb(image, size)
        except Exception as error:  # Pillow has many kinds for a broken file
            refused.append(f"{name}: {error!s:.200}")
        else:
            kept.append(name)
            digest.update(content)
    summary = f"data_dir={str(folder)!r}: {len(kept):,} images from {len(names):,} files"
    if refused:
        summary += f"; left out {len(refused):,}, the first is {refused[0]}"
    if len(kept) < 2:
        raise ValueError(f"{summary}; expected 2 or more, better thousands.")
    say(summary)
    classes, labels = sorted({name.parts[0] for name in kept}), None
    if all(len(name.parts) > 1 for name in kept):
        labels = torch.tensor([classes.index(name.parts[0]) for name in kept])
    pixels = torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, folder.resolve().name, labels, digest.hexdigest())


def to_square_rgb(image, size):
    """Any PIL image -> uint8 [size, size, 3]: upright, on white, its central square."""
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode} has more than 8 bits; save it as an 8-bit PNG")
    with suppress(Exception):  # broken metadata must not cost a picture
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))


def to_tensor(arrays, size):
    """uint8 arrays [h, w, 3] -> uint8 [n, 3, size, size]."""
    arrays = [a if len(a) == size else to_square_rgb(Image.fromarray(a), size) for a in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


# ---- what trained a run ----


def code_of(root, without=()):
    """{name: hash} of the functions, classes and constants that `root` reaches in its module.

    Comments, docstrings, formatting and Python's version make no difference. The walk does not
    enter the names `without`.
    """
    function = root.__init__ if isinstance(root, type) else root
    space, hashes, names = inspect.unwrap(function).__globals__, {}, [root.__name__]
    while names:
        name = names.pop()
        if name in space and name not in hashes and name not in without:
            text, used = code_text(space[name], space)
            if text:
                hashes[name] = hashlib.sha256(text.encode()).hexdigest()[:8]
                names += used
    return dict(sorted(hashes.items()))


def code_text(thing, space):
    """(what says if a definition is the same, the global names that it uses); "": of a library."""
    with suppress(TypeError, ValueError):
        return json.dumps(thing), []  # a constant
    if isinstance(thing, type):
        if thing.__module__ != space["__name__"]:
            return "", []
        bases, parts = [base.__name__ for base in thing.__bases__], {}
        for name, part in sorted(vars(thing).items()):
            if callable(part) or not name.startswith("__"):
                parts[name] = code_text(part, space)
        texts = {name: text for name, (text, _) in parts.items() if text}
        return f"{bases} {texts}", sum((used for _, used in parts.values()), bases)
    function = getattr(thing, "fget", getattr(thing, "__func__", thing))  # of a property, a method
    function = inspect.unwrap(function) if callable(function) else None
    if getattr(function, "__globals__", None) is space:
        with suppress(OSError, SyntaxError):  # what dataclasses write has no source
            source = textwrap.dedent(inspect.getsource(function))
            return syntax(source), [*globals_in(symtable.symtable(source, "code", "exec"))]
    return "", []


def syntax(source):
    """The syntax of source code, less docstrings and what depends on Python's version."""
    docstring = r"""Expr\(value=Constant\(value=(['"]).*?(?<!\\)\1\)\)"""
    dump = re.sub(docstring, "", ast.dump(ast.parse(source)))
    return re.sub(r"\w+=\[\]|ctx=\w+\(\)|[ ,]", "", dump)


def globals_in(table):
    """The names that a symbol table and those inside it look up in the module."""
    top = table.get_type() == "module"
    names = {symbol.get_name() for symbol in table.get_symbols() if top or symbol.is_global()}
    return names.union(*map(globals_in, table.get_children()))


# ---- runs ----

FINISHED = "it is finished. With a larger total_images or max_minutes it goes on."
MAY_CHANGE = ("total_images", "max_minutes", "compile", "precision")  # when a run goes on


class RunError(ValueError):
    """A run cannot be begun; the message says why, and what to do."""


def runs_root():
    """The folder of all runs, made if it is missing; OSError says how to choose another."""
    root = Path(os.environ.get("VITGAN_RUNS", "runs")).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise OSError(f"{root} cannot hold runs ({error}); VITGAN_RUNS names another.") from None
    return root


def run_folder(root, profile, data, config, code):
    """root/profile-data-hash of these settings and images; with a number if the code is another.

    code: code_of(train). Where a run of other code is, a sentence says what changed.
    """
    settings = {name: value for name, value in vars(config).items() if name not in MAY_CHANGE}
    digest = hashlib.sha256(repr([data.digest, settings]).encode()).hexdigest()[:6]
    slug = re.sub(r"\W+", "-", data.name.lower())[:40].strip("-")
    first = Path(root) / f"{profile}-{slug}-{digest}"
    folders = (first.with_name(f"{first.name}-{n}") if n > 1 else first for n in itertools.count(1))
    folder = next(folder for folder in folders if not changed_code(folder, code))
    if folder != first and not (folder / "checkpoint.pt").exists():
        changed = f"The code has changed since {first} was trained: {changed_code(first, code)}."
        hint = f"The setting run_dir={first} goes on with the old run all the same."
        say(f"{changed} Training starts anew in {folder}. {hint}")
    return folder


def changed_code(folder, code):
    """In words: whose code is not that of the checkpoint in `folder`; "" if there is none."""
    saved = read_checkpoint(folder, mmap=True)
    then = saved.get("code", {})
    names = [n for n in sorted({**code, **then}) if saved and code.get(n) != then.get(n)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def read_checkpoint(folder, mmap=False):
    """The checkpoint of a run, {} if there is none; RunError if it cannot be read."""
    path = Path(folder) / "checkpoint.pt"
    try:
        return torch.load(path, "cpu", weights_only=True, mmap=mmap) if path.exists() else {}
    except Exception as error:  # torch has many kinds for a damaged file
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise RunError(f"{path} cannot be read ({reason}); move it away.") from error


def is_finished(config, images_seen, seconds):
    return images_seen >= config.total_images or seconds >= 60 * config.max_minutes


class Run:
    """A run in a folder: log and checkpoints. Ctrl-C, SIGTERM and SIGHUP end it after the step.

    state: has config, device, images_seen, seconds, history, scaler, networks as attributes, and
    state_dict, load_state_dict. code: code_of(train). A second Ctrl-C ends the run at once.
    """

    def __init__(self, state, folder, code, log_steps=50, snapshot_seconds=None):
        self.state, self.folder, self.code = state, Path(folder), code
        self.log_steps, self.losses = log_steps, []
        self.stopped = self.ended = self.unsaved = False
        self.lock_folder()
        try:
            self.resume()
        except BaseException:
            self.lock.release()
            raise
        eighth = min(600, 60 * state.config.max_minutes / 8)
        self.interval = eighth if snapshot_seconds is None else snapshot_seconds
        self.snapshot_at = state.seconds + min(60, self.interval)  # the first one soon

    def lock_folder(self):
        """Raise RunError if another process trains here; where locks do not exist, go on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / "run.lock")  # it ends with its process
            if rank_and_size()[0] == 0:
                self.lock.acquire(timeout=0)
        except Timeout:
            hint = "wait for it, or choose another folder by run_dir=FOLDER"
            raise RunError(f"another process trains in {self.folder}; {hint}.") from None
        except (OSError, NotImplementedError) as error:
            if not (self.folder.is_dir() and os.access(self.folder, os.W_OK)):
                raise RunError(f"{self.folder} cannot hold a run ({error}).") from None

    def resume(self):
        """Go on from the checkpoint, if there is one, and say so."""
        state, c, saved = self.state, self.state.config, read_checkpoint(self.folder)
        if saved:
            then, now = saved["config"], vars(c)
            changed = [n for n in now if n not in MAY_CHANGE and then.get(n, now[n]) != now[n]]
            if changed:
                what = ", ".join(f"{name}={then[name]} (now {now[name]})" for name in changed)
                raise RunError(f"{self.folder} holds a run with {what}; choose another folder.")
            try:
                state.load_state_dict(saved["state"])
            except (AttributeError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
                raise RunError(f"{self.folder} holds a run of other code: {reason}") from error
            set_random_states(saved["rng"], 1_000_003 * c.seed + state.images_seen)
            what = "going on from there." if self.unfinished() else FINISHED
            say(f"{self.folder} has seen {state.images_seen:,} images; {what}")
            if other := changed_code(self.folder, self.code):
                say(f"It goes on with changed code: {other}.")
        if rank := rank_and_size()[0]:  # no two processes draw the same noise
            torch.manual_seed(1_000_003 * (c.seed + state.images_seen) + rank)

    def __enter__(self):
        self.clock, self.handlers = time.monotonic(), {}
        self.bar = tqdm(initial=self.state.images_seen, unit=" images", unit_scale=True, delay=0.1)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) not in (None, signal.SIG_IGN):
                with suppress(ValueError):  # only the main thread may
                    self.handlers[number] = signal.signal(number, self.stop)
        return self

    def stop(self, number, frame):
        self.stopped = True
        if not dist.is_initialized():  # torchrun sends several
            signal.signal(number, self.handlers[number])

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        try:
            if self.unsaved:
                self.save()
        finally:
            self.lock.release()
            with suppress(OSError):
                self.bar.close()
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            size = self.state.config.batch_size
            raise MemoryError(f"out of memory with batch_size={size}; try half of it") from error

    def unfinished(self):
        """Is there another step to do?"""
        state = self.state
        return not (self.ended or is_finished(state.config, state.images_seen, state.seconds))

    def log(self, losses):
        """Collect a step's losses {name: tensor []}; their means join the history now and then.

        That is every `log_steps` steps, every 20 seconds, and at the end. FloatingPointError if
        the losses or the weights are not finite.
        """
        state, alone = self.state, not dist.is_initialized()
        self.losses.append(losses)
        with suppress(OSError):
            self.bar.update(state.config.batch_size)
        early = alone and (self.stopped or time.monotonic() - self.clock > 20)
        if len(self.losses) < self.log_steps and self.unfinished() and not early:
            return
        means = {name: torch.stack([step[name] for step in self.losses]).mean() for name in losses}
        passed = [time.monotonic() - self.clock, float(self.stopped)]
        seconds, stopped = torch.tensor(passed, device=state.device)
        all_reduce_mean([*means.values(), seconds, stopped])  # so that all processes stop together
        means = {name: mean.item() for name, mean in means.items()}
        weights = [p for network in (state.G, state.D) for p in network.parameters()]
        finite = all(p.isfinite().all() for p in weights) and np.isfinite([*means.values()]).all()
        if not finite or 0 < state.scaler.get_scale() < 1:
            what = f"not finite: losses or weights, after {state.images_seen:,} images."
            raise FloatingPointError(f"{what} Try precision=float32, or half of lr_g and lr_d.")
        state.seconds += seconds.item()
        state.history.append({"images": state.images_seen, "seconds": state.seconds} | means)
        self.ended, self.clock, self.losses = stopped.item() > 0, time.monotonic(), []
        by_time = 60 * state.config.max_minutes * state.images_seen / state.seconds
        self.bar.total = min(state.config.total_images, by_time)

    def snapshot_due(self):
        """Is it time to draw samples? From here on a checkpoint will be saved, whatever happens."""
        due = self.state.seconds >= self.snapshot_at or not self.unfinished()
        self.unsaved = due and not self.losses and rank_and_size()[0] == 0
        return self.unsaved

    def snapshot(self, samples, scores):
        """Save a checkpoint with {name: score} and a strip of uint8 samples; print the scores."""
        state = self.state
        state.history[-1] |= {name: float(score) for name, score in scores.items()}
        self.save()
        self.snapshot_at = state.seconds + self.interval
        with optional("a strip of samples", OSError):
            image_grid(samples[:64], 16).save(self.folder / f"samples-{state.images_seen:09d}.png")
        say("  ".join(f"{name} {round(value, 3):,}" for name, value in state.history[-1].items()))

    def save(self):
        """Replace the checkpoint by one of now, which the next session can read for certain."""
        self.unsaved, path = False, self.folder / "checkpoint.tmp"
        saved = {"state": self.state.state_dict(), "config": vars(self.state.config)}
        saved |= {"code": self.code, "rng": random_states(), "format": str(self.state.dtype)}
        with optional("a checkpoint, the next one tries again", OSError, RuntimeError):
            try:
                torch.save(saved, path)
                os.replace(path, path.with_suffix(".pt"))
            finally:
                path.unlink(missing_ok=True)


# ---- weights ----


def save_weights(path, networks, about):
    """Write {name: network} as safetensors, matrices in half precision, with a dict beside them."""
    tensors = {}
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            tensor = tensor.half() if tensor.ndim > 1 else tensor
            tensors[f"{name}.{key}"] = tensor.cpu().contiguous()
    save_file(tensors, path, metadata={"about": json.dumps(about)})


def about_weights(path):
    """The dict that save_weights stored; RunError if the file is none of its own."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["about"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise RunError(f"{path} is no file by save_weights ({error}).") from None


def load_weights(path, networks):
    """Load {name: network} from a file by save_weights; RunError names what does not fit."""
    about = about_weights(path)
    with safe_open(path, "pt") as file:
        for name, network in networks.items():
            keys = [key for key in file.keys() if key.startswith(f"{name}.")]
            found = {key.removeprefix(f"{name}."): file.get_tensor(key).float() for key in keys}
            wanted = network.state_dict()
            shapes = [{k: v.shape for k, v in part.items()} for part in (wanted, found)]
            wrong = [key for key in {**wanted, **found} if len({s.get(key) for s in shapes}) > 1]
            if wrong:
                more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
                made = " ".join(f"{key}={value}" for key, value in about["model"].items())
                raise RunError(f"{path} does not fit this {name}: {wrong[0]}{more}. It has {made}.")
            network.load_state_dict(found)


# ---- the notebook's definitions, and the command ----


def parse_settings(text):
    """'lr_g=0.003 data_dir="my photos"' -> {"lr_g": "0.003", "data_dir": "my photos"}."""
    words = shlex.split(text)
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"{wrong[0]!r} is no setting; expected NAME=VALUE, as in lr_g=0.003.")
    return dict(word.split("=", 1) for word in words)


def is_definition(node):
    """Is a statement an import, a function, a class, or does it set CONSTANTS?"""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
        return True
    if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return False
    targets = getattr(node, "targets", None) or [node.target]
    names = [part.id for target in targets for part in ast.walk(target) if hasattr(part, "id")]
    return all(re.fullmatch("[A-Z][A-Z0-9_]+", name) for name in names)


def load_definitions(path=HERE / "ViTGAN_CIFAR10.ipynb"):
    """The notebook's imports, functions, classes and CONSTANTS, of all its cells, as a module."""
    path, sources = Path(path), []
    module = sys.modules["vitgan"] = types.ModuleType("vitgan")
    module.__file__ = f"<{path.name}>"
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        source = TransformerManager().transform_cell("".join(cell["source"]))  # no %magic left
        name, lines = f"<{path.name}, cell {i}>", source.splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)  # for tracebacks, inspect
        body = [node for node in ast.parse(source, name).body if is_definition(node)]
        exec(compile(ast.Module(body, []), name, "exec"), vars(module))
        for node in body:  # since Python 3.13 a class knows its line, here that in its cell
            thing = vars(module).get(getattr(node, "name", None))
            if hasattr(thing, "__firstlineno__"):
                thing.__firstlineno__ += len(sources)
        sources += lines
    linecache.cache[module.__file__] = (len(sources), None, sources, module.__file__)
    return module


def main(words):
    """Train, in as many processes as torchrun starts; leaves weights and samples in a folder."""
    sys.excepthook = traceback.print_exception  # it finds the lines of cells
    device, vitgan = pick_device(), load_definitions()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        chosen = parse_settings(shlex.join(words))
        if rank_and_size()[0]:
            dist.barrier()  # the first process downloads
        data = load_images(int(chosen.pop("image_size", 32)), chosen.pop("data_dir", ""))
        if rank_and_size()[0] == 0 and dist.is_initialized():
            dist.barrier()
        folder = chosen.pop("run_dir", None)
        profile, config = vitgan.configure(data, device, **chosen)
        share(config.batch_size)
        code = vitgan.training_code()
        folder = Path(folder or run_folder(runs_root(), profile, data, config, code))
        saved = read_checkpoint(folder, mmap=True).get("state")
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"{error}\n\n{__doc__}")
    if saved and is_finished(config, saved["images_seen"], saved["seconds"]):
        sys.exit(f"{folder} has seen {saved['images_seen']:,} images; {FINISHED}")
    try:
        state = vitgan.train(config, data.pixels.to(device), folder)
    except (RunError, MemoryError, FloatingPointError) as error:
        sys.exit(str(error))
    if rank_and_size()[0] == 0:
        with optional("the weights, the checkpoint has them, too", OSError):
            vitgan.save_run(folder / "weights.safetensors", state, {"data": data.name})
        say(f"weights and samples: {folder}")
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- figures ----

plt.rcParams.update({
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
})  # fmt: skip


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


if __name__ == "__main__":  # the notebook imports helpers, which loads it: one module for both
    import helpers

    helpers.main(sys.argv[1:])
