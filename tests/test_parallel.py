"""Two processes that share a batch train the networks that one with the whole batch does."""

import functools
import itertools
import os
import signal
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import TINY, run, tiny_images

import helpers


def worker(out):
    """Train 3 steps with this process's share of draws that are made for the whole batch."""
    vitgan, seeds = helpers.load_definitions(), itertools.count(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    rank, size = helpers.rank_and_size()
    sample_real, randn = vitgan.sample_real, torch.randn

    def share(draw, n):
        torch.manual_seed(next(seeds))
        return draw(n * size).chunk(size)[rank]

    def shared_randn(n, *rest, generator=None, **options):
        if generator:
            return randn(n, *rest, generator=generator, **options)
        return share(lambda m: randn(m, *rest, **options), n)

    def shared_real(images, n, flip):
        torch.randn = shared_randn  # the weights are drawn by now
        return share(lambda m: sample_real(images, m, flip), n)

    vitgan.sample_real = shared_real
    vitgan.diff_augment = lambda x, policy: 0.9 * x.roll(1, -1)
    # With a small eps the rounding of gradients that are zero becomes whole steps
    torch.optim.Adam = functools.partial(torch.optim.Adam, eps=1e-3)
    config = vitgan.Config(**{**TINY, "batch_size": 8, "total_images": 24})
    state = vitgan.train(config, tiny_images(), out + "-run", log_steps=1)
    weights = [network.state_dict() for network in (state.G, state.D, state.G_ema)]
    saved = {"history": state.history, "seconds": state.seconds, "weights": weights}
    torch.save(saved, f"{out}-{rank}.pt")


def test_train_in_two_processes_equals_train_in_one(tmp_path):
    """Losses, weights and EMA after 3 steps, to 1e-5; only the first process keeps snapshots."""
    run(sys.executable, __file__, tmp_path / "one")
    run(
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        tmp_path / "two",
    )
    files = (tmp_path / f"{name}.pt" for name in ("one-0", "two-0", "two-1"))
    one, first, second = map(torch.load, files)
    assert ["swd" in saved["history"][-1] for saved in (one, first, second)] == [True, True, False]
    assert first["seconds"] == second["seconds"] > 0  # so that both stop at the same step
    losses = [[entry["d_loss"] for entry in saved["history"]] for saved in (one, first)]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-5, atol=1e-5)
    for a, b in zip(first["weights"][:2], second["weights"][:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def stopped_worker(out):
    """The second process gets the signal in its third step."""
    vitgan = helpers.load_definitions()
    dist.init_process_group("gloo")
    honest, steps = vitgan.train_step, []

    def train_step(state, images):
        steps.append(1)
        if len(steps) == 3 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return honest(state, images)

    vitgan.train_step = train_step
    config = vitgan.Config(**{**TINY, "total_images": 4000})
    state = vitgan.train(config, tiny_images(), out, log_steps=5)
    assert state.images_seen == 20
    with pytest.raises(ValueError, match="batch_size=3 must be a multiple of the 2 processes"):
        helpers.share(3)
    dist.destroy_process_group()


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_the_first_saves(tmp_path):
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    run(sys.executable, *launch, __file__, tmp_path / "run", "stop")
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["state"]["images_seen"] == 20


if __name__ == "__main__" and len(sys.argv) == 3:
    stopped_worker(sys.argv[1])
elif __name__ == "__main__":
    worker(sys.argv[1])
