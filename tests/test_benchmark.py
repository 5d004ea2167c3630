"""The benchmark counts what it says it counts, and its table holds what README promises. Nothing here asserts a speed."""

import json

import benchmark
import pytest
import torch
import torch.nn.functional as F

KEYS = {"code", "dtype", "compile", "batch", "train", "generate", "memory_mib", "share_of_peak"}


def test_flops_and_kept_bytes_of_one_layer():
    """y = x W: 2 m n k multiplications and additions forward, twice that backward; x and W are kept, once each."""
    x, W = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    assert benchmark.count(lambda: F.linear(x, W)) == (2 * 4 * 8 * 16, 4 * (4 * 8 + 16 * 8))
    assert benchmark.count(lambda: F.linear(x, W).sum().backward())[0] == 3 * 2 * 4 * 8 * 16


def test_a_larger_batch_costs_proportionally_more_flops_but_the_same_weights(vitgan, make_config):
    small, large = (benchmark.step_counts(vitgan, make_config(batch_size=b), torch.device("cpu")) for b in (4, 8))
    for name in ("D step", "G step"):
        assert 1.6 * small[name][0] < large[name][0] <= 2 * small[name][0]
        assert small[name][1] < large[name][1] < 2 * small[name][1]
    weights = sum(p.numel() for p in vitgan.Discriminator(make_config()).parameters())
    assert small["D step"][1] > 40 * weights


def test_table_has_a_literal_row_and_one_per_setting(vitgan, make_config, capsys):
    found = benchmark.table(vitgan, make_config(), torch.device("cpu"), [4, 8], ["float32", "bfloat16"], (False,),
                            literal_batch=4, min_run_time=0.001)
    assert [(r["code"], r["dtype"], r["batch"]) for r in found["rows"]] == [
        ("literal", "float32", 4), *(("notebook", d, b) for b in (4, 8) for d in ("float32", "bfloat16"))]
    for row in found["rows"]:
        assert set(row) == KEYS and row["train"] > 0 and row["generate"] > 0
        assert (row["share_of_peak"] is None) is (row["code"] == "literal")
    assert {"date", "torch", "python", "device", "threads", "config", "matmul_flops_per_second"} <= set(found)
    json.dumps(found)
    out = capsys.readouterr().out
    assert "floor" in out and "1.0x" in out and out.count("notebook") == 4


def test_rows_that_do_not_fit_are_left_out_with_a_word(vitgan, make_config, monkeypatch, capsys):
    def full(vitgan, config, *rest):
        if config.batch_size == 8:
            raise torch.OutOfMemoryError("too much")
        return {"code": "notebook", "train": 1.0, "generate": 1.0, "dtype": "float32", "compile": False, "batch": 4,
                "memory_mib": None}

    monkeypatch.setattr(benchmark, "measure", full)
    found = benchmark.table(vitgan, make_config(), torch.device("cpu"), [4, 8], ["float32"], (False,))
    assert len(found["rows"]) == 1 and "out of memory" in capsys.readouterr().out


def test_peak_memory_sees_a_large_tensor():
    device = torch.device("cpu")
    if benchmark.peak_memory(device) is None:
        pytest.skip("only Linux tells the peak of a process")
    benchmark.reset_peak_memory(device)
    before = benchmark.peak_memory(device)
    torch.ones(100 * 2**20 // 4).sum()
    assert 90 < benchmark.peak_memory(device) - before < 200
