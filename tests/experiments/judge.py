"""cFD: how far images are from CIFAR-10, in the features of a small CIFAR-10 classifier (assets/judge.md).

    python tests/experiments/judge.py SAMPLES.npy

SAMPLES.npy: uint8 [n, 3, S, S], S = 16 or 32; best 10,000, since fewer score higher. Prints as JSON: cfd; test_cfd,
what CIFAR-10's test images score; n; size; sure, the share of images of which the classifier is over 90% sure; and
class_entropy, 2.303 when all classes are equally frequent. cFD is not FID; compare it at one size and number of images.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

WEIGHTS, SIZES = Path(__file__).resolve().parents[2] / "assets" / "judge.safetensors", (16, 32)  # sides it can judge


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, i, S, S] -> [B, o, S / stride, S / stride]."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(n, o, 3, s, 1, bias=False) for n, s in ((i, stride), (o, 1)))
        self.b1, self.b2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.sc = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i != o else nn.Identity()

    def forward(self, x):
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.sc(x))


class Judge(nn.Module):
    """Images [B, 3, 32, 32] in 0..255 -> features [B, 256] and chances of the classes [B, 10]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2), Block(128, 256, 2))
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        f = self.body(self.stem((x - 120) / 62)).mean((2, 3))
        return f, self.fc(f).softmax(1)


def load(path=WEIGHTS):
    """(the classifier in eval mode, {size: (mean [256], covariance [256, 256], test_cfd) of CIFAR-10})."""
    tensors, model, names = load_file(path), Judge(), ("mean", "cov", "test_cfd")
    references = {size: [tensors.pop(f"{name}.{size}").double() for name in names] for size in SIZES}
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return model.eval(), references


@torch.no_grad()
def features(model, images):
    """uint8 images [n, 3, S, S], enlarged to 32x32 -> features [n, 256] and chances [n, 10], float64."""
    found = [model(F.interpolate(part.float(), size=32, mode="bilinear")) for part in images.split(500)]
    return [torch.cat(parts).double() for parts in zip(*found)]


def frechet(mean_a, cov_a, mean_b, cov_b):
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), the squared distance of two Gaussians."""
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross.sum()).item()


def scores(images):
    """What the command prints, of uint8 images [n, 3, S, S], as a dict; cfd: 1000 times the Frechet distance to CIFAR-10."""
    if images.dtype != torch.uint8 or images.shape[1:] not in [(3, size, size) for size in SIZES]:
        raise ValueError(f"{images.dtype} {tuple(images.shape)}; expected uint8 [n, 3, S, S] with S = 16 or 32.")
    (model, references), size = load(), images.shape[-1]
    (f, chances), (mean, cov, floor) = features(model, images), references[size]
    return {"cfd": 1000 * frechet(f.mean(0), f.T.cov(), mean, cov), "test_cfd": 1000 * floor.item(),
            "n": len(images), "size": size, "sure": (chances.amax(1) > 0.9).double().mean().item(),
            "class_entropy": torch.special.entr(chances.mean(0)).sum().item()}


if __name__ == "__main__":
    found = scores(torch.from_numpy(np.load(sys.argv[1])))
    print(json.dumps({name: round(value, 2 if "cfd" in name else 3) for name, value in found.items()}))
