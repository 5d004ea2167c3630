"""Trained generators on disk: what is written is what is read, and nothing else is accepted."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import helpers

CARD = {"data": "noise", "images_seen": 640}


@pytest.fixture
def saved(vitgan, config, tmp_path):
    """(generator, path of its file, SHA-256)."""
    G = vitgan.Generator(config).eval()
    G.w_batches += 100_000.0  # more than half precision can hold
    path = tmp_path / "deep" / "generator.safetensors"
    return G, path, vitgan.save_generator(path, G, config, CARD)


def test_round_trip_in_half_precision(vitgan, saved, config):
    G, path, sha = saved
    loaded, its_config, card = vitgan.load_generator(path, sha)
    assert its_config == config and card == CARD and not loaded.training
    z = torch.randn(4, config.latent_dim)
    torch.testing.assert_close(loaded(z), G(z), atol=0.02, rtol=0.02)
    assert loaded.w_batches == 100_000 and all(p.dtype == torch.float32 for p in loaded.parameters())
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys() if file.get_tensor(name).ndim > 1} == {torch.float16}
        assert json.loads(file.metadata()["about"])["card"] == CARD


@pytest.mark.fault
def test_another_hash_is_refused_and_no_hash_is_no_check(vitgan, saved):
    _, path, sha = saved
    with pytest.raises(ValueError, match=f"SHA-256 {sha}; expected {'0' * 64}.*get it again"):
        vitgan.load_generator(path, "0" * 64)
    vitgan.load_generator(path)


@pytest.mark.fault
def test_one_flipped_bit_is_noticed(vitgan, saved):
    _, path, sha = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        vitgan.load_generator(path, sha)


@pytest.mark.fault
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}q\x00.", b"\xff" * 64])
def test_other_files_are_refused(vitgan, tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no weights of this kit"):
        vitgan.load_generator(path)


@pytest.mark.fault
def test_foreign_safetensors_are_refused(vitgan, tmp_path):
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no weights of this kit"):
        vitgan.load_generator(tmp_path / "x.safetensors")


@pytest.mark.fault
@pytest.mark.parametrize("change", [
    lambda about: about["config"].update(width=24), lambda about: about["config"].update(blocks=2),
    lambda about: about["config"].update(no_such_field=1), lambda about: about["config"].update(heads=5),
    lambda about: about.pop("config"), lambda about: about.pop("card")])
def test_settings_that_do_not_fit_are_refused(vitgan, saved, change):
    _, path, _ = saved
    tensors, about = helpers.load_weights(path)
    change(about)
    helpers.save_weights(path, tensors, about)
    with pytest.raises(ValueError, match="another version"):
        vitgan.load_generator(path)
