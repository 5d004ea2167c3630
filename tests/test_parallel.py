"""Two processes that share a batch train the networks that one with the whole batch does."""
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import NOTEBOOK, TINY, tiny_images

import helpers


def worker(out):
    """Train 3 steps with this process's share of draws that are made for the whole batch."""
    vitgan, seeds = helpers.load_definitions(NOTEBOOK), itertools.count(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:  # they meet in a file, since a free port may be taken before it is used
        dist.init_process_group("gloo", f"file://{out}-meeting", rank=rank, world_size=size)
    assert helpers.rank_and_size() == (rank, size)
    sample_real, randn, TrainState = vitgan.sample_real, torch.randn, vitgan.TrainState

    def share(draw, n):
        torch.manual_seed(next(seeds))
        return draw(n * size).chunk(size)[rank]

    def shared_randn(n, *rest, generator=None, **options):
        if generator:
            return randn(n, *rest, generator=generator, **options)
        return share(lambda m: randn(m, *rest, **options), n)

    def state_and_patch(*settings):
        state = TrainState(*settings)  # draws its weights before
        for optimizer in (state.opt_G, state.opt_D):  # else rounding of zeros becomes whole steps
            optimizer.param_groups[0]["eps"] = 1e-3
        torch.randn = shared_randn
        return state

    helpers.LOG_STEPS, vitgan.TrainState = 1, state_and_patch
    vitgan.sample_real = lambda images, n, flip: share(lambda m: sample_real(images, m, flip), n)
    vitgan.diff_augment = lambda x, policy: 0.9 * x.roll(1, -1)
    config = vitgan.Config(**{**TINY, "batch_size": 8, "total_images": 24})
    state = vitgan.train(config, tiny_images(), out + "-run")
    losses = [entry["d_loss"] for entry in state.history]
    weights = [network.state_dict() for network in (state.G, state.D, state.G_ema)]
    torch.save({"size": size, "losses": losses, "saves": "swd" in state.history[-1],
                "seconds": state.seconds, "weights": weights}, f"{out}-{rank}.pt")

def test_train_in_two_processes_equals_train_in_one(tmp_path):
    """Losses, weights and EMA after 3 steps, to 1e-5; only the first process keeps snapshots."""
    started = []
    for out, rank, size in [("one", 0, 1), ("two", 0, 2), ("two", 1, 2)]:
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
               "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, tmp_path / out]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]
    names = ("one-0", "two-0", "two-1")
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in names)
    assert (one["size"], first["size"], first["saves"], second["saves"]) == (1, 2, True, False)
    assert first["seconds"] == second["seconds"] > 0  # so that both stop at the same step
    assert len(one["losses"]) == 3 and first["losses"] == pytest.approx(one["losses"], rel=1e-4)
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-5, atol=1e-5)
    for a, b in zip(first["weights"][:2], second["weights"][:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

if __name__ == "__main__":
    worker(sys.argv[1])
