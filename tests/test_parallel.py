"""Several processes, accumulated gradients, compiled networks, too little memory: the same numbers, or one sentence."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import helpers

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def launch(command, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.mark.parametrize("fields", [[], ["lecam=0.5", "r1=0.1", "logistic_on=plain"], ["accumulate=2", "augment_p=0.0"]])
def test_two_processes_equal_one_with_the_whole_batch(tmp_path, fields):
    """Loss and weights after 6 steps, to 1e-5: noise, real images and augmentation being the same."""
    fields = ["batch_size=8", "total_images=48", *fields]
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    worker = ROOT / "tests" / "parallel_worker.py"
    launch([sys.executable, worker, tmp_path / "one", *fields])
    launch([*LAUNCH, worker, tmp_path / "two", *fields])
    one, two, other = (torch.load(tmp_path / name) for name in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    for network in ("G", "D"):
        for name, expected in one[network].items():
            torch.testing.assert_close(two[network][name], expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(other[network][name], two[network][name], rtol=0, atol=0)
    alone, main, second = (json.loads((tmp_path / n).read_text())
                           for n in ("one/rank0.json", "two/rank0.json", "two/rank1.json"))
    assert (alone["processes"], main["processes"]) == (1, 2)
    for a, b in zip(alone["history"], main["history"], strict=True):
        assert {k: v for k, v in b.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in a.items() if k != "seconds"}, rel=1e-4, abs=1e-5)
    ema = [helpers.load_checkpoint(tmp_path / n / "checkpoint.pt")["ema"] for n in ("one", "two")]
    for name, expected in ema[0].items():
        torch.testing.assert_close(ema[1][name], expected, rtol=1e-5, atol=1e-5)
    assert "swd" in main["history"][-1] and "swd" not in second["history"][-1], "only the first one keeps snapshots"


def test_the_terminal_command_trains_in_two_processes_with_noise_of_their_own(tmp_path):
    """`torchrun helpers.py train` writes the checkpoint that the notebook would go on from."""
    out = launch([*LAUNCH, "helpers.py", "train"], VITGAN_PROFILE="smoke", VITGAN_RUNS=tmp_path)
    assert "640 images" in out and "2 process(es)" in out
    state = helpers.load_checkpoint(tmp_path / "smoke-digits-scikit-learn" / "checkpoint.pt")
    assert state["images_seen"] == 640 and state["step"] == 40 and len(state["history"]) == 4


def test_processes_draw_different_noise_and_the_first_one_as_if_alone(monkeypatch):
    torch.manual_seed(0)
    alone = torch.randn(3)
    drawn = []
    for rank in (0, 1, 2):
        monkeypatch.setattr(helpers.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(helpers.dist, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        helpers.separate_randomness(0)
        drawn.append(torch.randn(3))
    assert torch.equal(drawn[0], alone)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_batch_that_the_processes_cannot_share_is_refused(vitgan, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers, "processes", lambda: 3)
    with pytest.raises(vitgan.ConfigError, match="batch_size=4; allowed: a multiple of accumulate × processes = 3"):
        vitgan.new_run(make_config(batch_size=4), tmp_path, torch.device("cpu"))


# -------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("option", [{}, {"r1": 0.5}, {"logistic_on": "plain"}, {"bcr_real": 0.0, "bcr_fake": 0.0}])
def test_accumulated_gradients_equal_those_of_the_whole_batch(vitgan, new_run, images, monkeypatch, parts, option):
    monkeypatch.setattr(vitgan, "diff_augment", lambda x, policy, p: 0.9 * x.roll(1, -1))
    gradients = []
    for accumulate in (1, parts):
        run = new_run(batch_size=8, accumulate=accumulate, **option)
        for optimizer in (run.opt_g, run.opt_d):
            optimizer.param_groups[0]["eps"] = 1e-3
        torch.manual_seed(0)
        logged = vitgan.training_step(run, images)
        gradients.append(({n: p.grad for N in (run.D, run.G) for n, p in N.named_parameters()}, logged, run))
    (whole, a, first), (summed, b, second) = gradients
    for name, expected in whole.items():
        torch.testing.assert_close(summed[name], expected, rtol=1e-4, atol=1e-5)
    assert {k: float(v) for k, v in b.items()} == pytest.approx({k: float(v) for k, v in a.items()}, rel=1e-4)
    torch.testing.assert_close(second.D.embed.u, first.D.embed.u)  # one power iteration, however many parts
    assert second.G.training and second.D.training and second.images_seen == 8


def test_accumulate_that_does_not_divide_the_batch_is_refused(vitgan, make_config):
    with pytest.raises(vitgan.ConfigError, match="accumulate=3; allowed: a divisor of batch_size=4"):
        make_config(accumulate=3)


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.fault
def test_too_little_memory_ends_in_one_sentence_and_keeps_the_checkpoint(vitgan, train, monkeypatch, tmp_path):
    train(total_images=8)
    step = vitgan.training_step

    def full(run, images):
        if run.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(run, images)

    monkeypatch.setattr(vitgan, "training_step", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(total_images=48)
    assert str(caught.value) == (f"batch_size=4 in 1 part(s) does not fit into the memory of cpu: set accumulate=2 (the same "
                                 f"gradients in smaller parts); the last checkpoint in {tmp_path} is whole.")
    assert helpers.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    monkeypatch.setattr(vitgan, "training_step", step)
    assert train(total_images=48, accumulate=2).images_seen == 48


@pytest.mark.fault
def test_too_little_memory_while_compiling_is_told_as_such(vitgan, train, monkeypatch, tmp_path, stance):
    train(total_images=8)

    def full(run, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(vitgan, "training_step", full)
    with pytest.raises(torch.OutOfMemoryError, match="set accumulate=2"):
        train(total_images=48, compile=True)
    assert helpers.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2


# ------------------------------------------------------------------------------------------------------------- compile


@pytest.fixture
def stance():
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_training_follows_eager_training(train, stance):
    """50 steps in float32: every logged number within 1e-3 of eager."""
    settings = dict(batch_size=8, total_images=400, log_images=8, snapshot_minutes=60.0, pool="mean")
    eager, compiled = train("eager", **settings), train("compiled", compile=True, **settings)
    assert compiled.G._compiled_call_impl is not None and compiled.step == 50
    for a, b in zip(eager.history, compiled.history, strict=True):
        for name in ("d_loss", "g_loss", "bcr", "logit_real", "logit_fake"):
            assert b[name] == pytest.approx(a[name], abs=1e-3), (name, a["images"])


def test_failed_compilation_warns_once_and_leaves_no_trace(vitgan, train, stance, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    eager = train("eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train("compiled", compile=True)
    (ours,) = [str(w.message) for w in caught if str(w.message).startswith("torch.compile failed")]
    assert "training goes on uncompiled: " in ours and "C++ compiler" in ours
    assert run.images_seen == eager.images_seen
    assert all(torch.equal(a, b) for a, b in zip(run.G.parameters(), eager.G.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(run.D.buffers(), eager.D.buffers()))


def test_compilation_is_announced_and_counts_as_training_time(vitgan, make_config, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vitgan, "compile_networks", lambda *_: time.sleep(0.2) or True)
    run = vitgan.train(make_config(compile=True, max_minutes=0.1 / 60), images, tmp_path)
    assert "compiled in 0 s, counted as training" in capsys.readouterr().out
    assert run.seconds >= 0.2 and run.images_seen == 8, "the minutes are spent after the first entry of the log"


def test_a_finished_run_is_not_compiled_again(vitgan, train, monkeypatch):
    train()
    monkeypatch.setattr(vitgan, "compile_networks", lambda *_: pytest.fail("there is nothing left to train"))
    train(compile=True)
