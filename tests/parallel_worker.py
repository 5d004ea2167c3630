"""Train a few steps with draws that do not depend on how many processes share the batch; for tests/test_parallel.py.

    torchrun --standalone --nproc-per-node=2 tests/parallel_worker.py FOLDER FIELD=VALUE ...

Every draw is made for the whole batch from a seed of its own, and each process keeps its share.
"""

import itertools
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from conftest import NOTEBOOK, TINY, tiny_images  # noqa: E402
from experiment import fields  # noqa: E402

import helpers  # noqa: E402

seeds = itertools.count(1)


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def share(whole):
    """This process's part of a batch."""
    return whole.chunk(helpers.processes())[rank()]


def same_draws(vitgan, batch_size):
    """Replace the draws of a training step, once training has begun, by shares of draws for the whole batch."""
    randn, sample_real, diff_augment, new_run = torch.randn, vitgan.sample_real, vitgan.diff_augment, vitgan.new_run

    def whole_noise(n, *rest, generator=None, **options):
        if generator is None:
            torch.manual_seed(next(seeds))
            return share(randn(n * helpers.processes(), *rest, **options))
        return randn(n, *rest, generator=generator, **options)

    def whole_real(images, n, flip):
        torch.manual_seed(next(seeds))
        return share(sample_real(images, n * helpers.processes(), flip))

    def whole_augment(x, policy, p):
        torch.manual_seed(next(seeds))
        groups = x.chunk(len(x) * helpers.processes() // batch_size)  # real and fake, or fake alone
        whole = []
        for group in groups:
            everyone = list(torch.zeros_like(group).repeat(helpers.processes(), 1, 1, 1).chunk(helpers.processes()))
            everyone[rank()] = group
            whole.append(torch.cat(everyone))
        augmented = diff_augment(torch.cat(whole), policy, p)
        return torch.cat([share(group) for group in augmented.chunk(len(groups))])

    def new_run_then_patch(config, folder, device):
        run = new_run(config, folder, device)
        for optimizer in (run.opt_g, run.opt_d):  # or gradients that are zero but for rounding become whole steps
            optimizer.param_groups[0]["eps"] = 1e-3
        torch.randn = whole_noise
        return run

    vitgan.sample_real, vitgan.diff_augment, vitgan.new_run = whole_real, whole_augment, new_run_then_patch


def main():
    folder = Path(sys.argv[1])
    vitgan = helpers.load_definitions(NOTEBOOK)
    config = vitgan.Config.profile("smoke", **{**TINY, **fields(sys.argv[2:])})
    same_draws(vitgan, config.batch_size)
    run = vitgan.train(config, tiny_images(), folder, quiet=True)
    torch.save({"G": run.G.state_dict(), "D": run.D.state_dict()}, folder / f"rank{rank()}.pt")
    helpers.save_json(folder / f"rank{rank()}.json", {"history": run.history, "processes": helpers.processes()})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
