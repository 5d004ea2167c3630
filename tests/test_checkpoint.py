"""Checkpoints: exact resume, refusal of what does not fit, and survival of damage."""

import dataclasses
import os
import pickle
import warnings
import zipfile

import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def everything(run):
    """All that training depends on, as one flat dict; only the clock is left out."""
    flat = {"rng": torch.get_rng_state(), "step": run.step, "images_seen": run.images_seen}
    for name in ("G", "D", "ema", "opt_g", "opt_d"):
        flatten(getattr(run, name).state_dict(), name, flat)
    flatten([{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history], "history", flat)
    return flat


def flatten(value, name, flat):
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            flatten(inner, f"{name}.{key}", flat)
    else:
        flat[name] = value


def different(a, b):
    assert a.keys() == b.keys()
    return [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]


def flip_bit(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture
def two_checkpoints(tmp_path):
    """A folder's checkpoint (new=True) and the one before it."""
    path = tmp_path / "checkpoint.pt"
    for new in (False, True):
        helpers.save_checkpoint(path, {"new": new, "weights": torch.arange(100.0)})
    return path


# -------------------------------------------------------------------------------------------------------- exact resume


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopping_and_going_on_equals_never_having_stopped(train, precision):
    options = dict(precision=precision, lecam=0.1, warmup=40, bcr_ramp=40)
    through = everything(train("through", total_images=48, **options))
    train("parts", total_images=24, **options)
    torch.manual_seed(99)  # a new process starts elsewhere
    parts = everything(train("parts", total_images=48, **options))
    assert different(through, parts) == []
    assert any("exp_avg" in name for name in parts) and any(name.endswith("swd") for name in parts)


@pytest.mark.fault
def test_a_crash_between_two_snapshots_costs_only_the_time_since(vitgan, config, train, images, tmp_path, monkeypatch):
    through = everything(train("through"))
    step, steps = vitgan.training_step, []

    def crash_in_step_4(run, images):
        steps.append(run.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(run, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(vitgan, "training_step", crash_in_step_4)
        train("crashed")
    run = vitgan.start_or_resume(config, images, tmp_path / "crashed")
    assert run.step == 2 and steps[-1] == 3
    assert different(through, everything(train("crashed"))) == []


def test_round_trip_restores_everything(vitgan, new_run, images):
    run = new_run()
    for _ in range(3):
        vitgan.training_step(run, images)
    run.history.append({"images": run.images_seen, "d_loss": 1.5})
    run.seconds = 12.5
    vitgan.save(run)
    saved = everything(run)
    other = new_run(seed=5)
    assert not torch.equal(other.G.mapping.layers[0].weight, run.G.mapping.layers[0].weight)
    vitgan.restore(other, helpers.load_checkpoint(run.folder / "checkpoint.pt"))
    assert different(saved, everything(other)) == [] and other.seconds == 12.5


def test_checkpoint_holds_all_that_the_issue_lists(vitgan, new_run):
    run = new_run(seed=3)
    vitgan.save(run)
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert {"G", "D", "ema", "opt_g", "opt_d", "scaler", "step", "images_seen", "rng", "config"} <= set(state)
    assert vitgan.Config(**state["config"]) == run.config
    assert any(name.endswith("sigma_init") for name in state["D"]) and "w_mean" in state["ema"]


def test_finished_run_is_only_read(train, tmp_path):
    first = train()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    again = train()
    assert again.images_seen == first.images_seen and again.history == first.history
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_may_go_on_with_other_training_settings(train):
    train(total_images=8)
    run = train(total_images=16, lr_g=0.001, bcr_real=1.0, batch_size=8, seed=3)
    assert run.images_seen == 16 and run.opt_g.param_groups[0]["lr"] == 0.001


@pytest.mark.fault
@pytest.mark.parametrize("changes", [dict(width=32), dict(blocks=2, heads=1), dict(pool="mean"), dict(positions="free"),
                                     dict(overlap=0), dict(l2_sign=1), dict(l2_exponent=0.5), dict(demodulate=True), dict(siren_hidden=2)])
def test_other_architecture_is_refused_by_name(vitgan, make_config, train, changes):
    train(total_images=4)
    old, new = make_config(), make_config(**changes)
    with pytest.raises(vitgan.ConfigError) as caught:
        train(**changes)
    for field in changes:
        assert f"{field}={getattr(new, field)!r} (checkpoint: {getattr(old, field)!r})" in str(caught.value)
    assert "mlp_ratio" not in str(caught.value) and "allowed:" in str(caught.value)


def test_every_field_that_the_networks_read_counts_as_architecture(vitgan, config):
    read = set()

    class Spy:
        def __getattr__(self, name):
            read.update({"image_size", "patch_size"} if name in ("grid", "tokens") else {name})
            return getattr(config, name)

    vitgan.Generator(Spy()), vitgan.Discriminator(Spy()), vitgan.ConvDiscriminator(Spy())
    assert read | {"discriminator"} == {field.name for field in dataclasses.fields(vitgan.Architecture)}


# -------------------------------------------------------------------------------------------------------------- damage


def test_nothing_there(tmp_path):
    assert helpers.load_checkpoint(tmp_path / "checkpoint.pt") is None


def test_newest_is_read_and_one_before_is_kept(two_checkpoints):
    assert helpers.load_checkpoint(two_checkpoints)["new"] is True
    assert helpers.load_checkpoint(helpers.previous(two_checkpoints))["new"] is False
    assert len(list(two_checkpoints.parent.iterdir())) == 2


@pytest.mark.fault
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_falls_back(two_checkpoints, share):
    data = two_checkpoints.read_bytes()
    two_checkpoints.write_bytes(data[: int(share * len(data))])
    with pytest.warns(UserWarning, match="checkpoint.pt cannot be read"):
        assert helpers.load_checkpoint(two_checkpoints)["new"] is False


@pytest.mark.fault
def test_flipped_bit_in_a_weight_falls_back(two_checkpoints):
    with zipfile.ZipFile(two_checkpoints) as archive:
        record = next(i for i in archive.infolist() if "/data/" in i.filename)
        start = record.header_offset + 30 + len(record.filename)
    flip_bit(two_checkpoints, two_checkpoints.read_bytes().index(torch.arange(100.0).numpy().tobytes(), start) + 50)
    assert torch.load(two_checkpoints, weights_only=True)["new"] is True  # torch alone does not notice
    with pytest.warns(UserWarning, match="cannot be read .*checksum"):
        assert helpers.load_checkpoint(two_checkpoints)["new"] is False


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_flipped_bit_is_harmless_or_noticed(tmp_path_factory, fault, share, bit):
    path = tmp_path_factory.mktemp("flip") / "checkpoint.pt"
    for new in (False, True):
        helpers.save_checkpoint(path, {"new": new, "weights": torch.arange(10.0)})
    with fault(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flip_bit(path, int(share * path.stat().st_size), bit)
        state = helpers.load_checkpoint(path)
        assert state["new"] is (not caught) and torch.equal(state["weights"], torch.arange(10.0))


@pytest.mark.fault
def test_both_broken(two_checkpoints):
    for path in (two_checkpoints, helpers.previous(two_checkpoints)):
        path.write_bytes(b"x")
    with pytest.warns(UserWarning) as caught, pytest.raises(RuntimeError, match="no readable checkpoint.*delete"):
        helpers.load_checkpoint(two_checkpoints)
    assert len(caught) == 2


@pytest.mark.fault
def test_training_goes_on_from_the_previous_checkpoint(train, tmp_path):
    through = everything(train())
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert different(through, everything(train())) == []


class Touch:
    """Unpickling this makes a folder: a stand-in for code that somebody hid in a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.fault
@pytest.mark.parametrize("write", [torch.save, save_pickle])
def test_code_in_a_checkpoint_never_runs(tmp_path, write):
    write({"G": Touch(tmp_path / "ran")}, tmp_path / "checkpoint.pt")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(RuntimeError):
        helpers.load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------------------------- atomicity


@pytest.mark.fault
@pytest.mark.parametrize("broken", ["torch.save", "os.fsync"])
def test_failure_while_writing_leaves_the_old_checkpoints_whole(two_checkpoints, monkeypatch, broken):
    save = torch.save

    def half_a_save(state, file):
        save(state, file)
        file.truncate(file.tell() // 2)
        raise OSError("disk full")

    def no_fsync(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(broken, half_a_save if broken == "torch.save" else no_fsync)
    with pytest.raises(OSError, match="disk full"):
        helpers.save_checkpoint(two_checkpoints, {"new": "newer"})
    assert helpers.load_checkpoint(two_checkpoints)["new"] is True
    assert helpers.load_checkpoint(helpers.previous(two_checkpoints))["new"] is False


@pytest.mark.fault
@pytest.mark.parametrize("last", [0, 1])
def test_crash_between_the_renames_leaves_a_whole_checkpoint(two_checkpoints, monkeypatch, last):
    replace, done = os.replace, []

    def crash(source, target):
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        helpers.save_checkpoint(two_checkpoints, {"new": "newer"})
    assert helpers.load_checkpoint(two_checkpoints)["new"] is True


def test_content_is_on_disk_before_the_old_one_makes_way(two_checkpoints, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), replace(source, target)))
    helpers.save_checkpoint(two_checkpoints, {})
    assert order == ["fsync", "checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.fault
def test_left_over_temporary_file_is_ignored_and_replaced(two_checkpoints):
    temporary = two_checkpoints.with_suffix(".tmp")
    temporary.write_bytes(b"half a checkp")
    assert helpers.load_checkpoint(two_checkpoints)["new"] is True
    helpers.save_checkpoint(two_checkpoints, {"new": "newer"})
    assert helpers.load_checkpoint(two_checkpoints)["new"] == "newer" and not temporary.exists()
