"""What tests/test_faults.py runs in processes of their own: a training that never ends by itself."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from conftest import NOTEBOOK, TINY, tiny_images  # noqa: E402

import helpers  # noqa: E402

vitgan = helpers.load_definitions(NOTEBOOK)


def train(folder, total=10**9, **overrides):
    """Train in `folder` with a snapshot every second step."""
    return vitgan.train(vitgan.Config.profile("smoke", **{**TINY, "total_images": total, **overrides}), tiny_images(), folder, quiet=True)
