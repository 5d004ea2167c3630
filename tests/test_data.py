"""Data: folders of all kinds, the digits, and CIFAR-10 when it is out of reach."""


import numpy as np
import pytest
import torch
from PIL import Image

import helpers

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, color=GREEN, mode="RGB", size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.mark.parametrize("mode, color, size, expected", [
    ("RGB", GREEN, (20, 20), GREEN), ("RGB", GREEN, (64, 20), GREEN), ("RGB", GREEN, (3, 5), GREEN),
    ("L", 77, (8, 8), (77, 77, 77)), ("1", 1, (8, 8), (255, 255, 255)),
    ("RGBA", (10, 20, 30, 0), (20, 20), (255, 255, 255)),
    ("RGBA", (10, 20, 30, 255), (20, 20), (10, 20, 30)),
    ("LA", (9, 255), (20, 20), (9, 9, 9)), ("I;16", 30_000, (20, 20), (117, 117, 117)),
    ("CMYK", (0, 255, 255, 0), (20, 20), RED)])
def test_load_images_makes_every_file_square_and_rgb(tmp_path, mode, color, size, expected):
    ending = "tif" if mode == "CMYK" else "png"
    for name in ("cats/a", "b"):  # with and without a folder per class
        save(tmp_path / f"{name}.{ending}", color, mode, size)
    pixels, name, settings = helpers.load_images(8, str(tmp_path))
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8
    assert (name, settings) == (tmp_path.name, {})
    assert (pixels == torch.tensor(expected, dtype=torch.uint8).view(3, 1, 1)).all()


def test_to_square_rgb_turns_photographs_upright_and_cuts_the_middle():
    """Phones store how the picture must be turned, not the turned picture."""
    stored, turn = Image.new("RGB", (16, 32), RED), Image.Exif()
    stored.paste(GREEN, (0, 0, 8, 32))  # green on the left
    turn[0x0112] = 6  # to be turned clockwise: green on top
    stored.info["exif"] = turn.tobytes()
    upright = helpers.to_square_rgb(stored, 8)
    assert (upright[1] == GREEN).all() and (upright[6] == RED).all()
    stripes = np.full((8, 32, 3), 99, np.uint8)
    stripes[:, 12:20] = 200
    assert (helpers.to_square_rgb(Image.fromarray(stripes), 4) > 190).all()


def test_load_images_counts_what_it_leaves_out_by_reason(tmp_path, capsys):
    save(tmp_path / "a.png", RED)
    save(tmp_path / "b.png", GREEN)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    for name in ("c.heic", "d.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    for name, mode in (("f.tif", "F"), ("i.tif", "I")):
        save(tmp_path / name, 7, mode)
    assert len(helpers.load_images(8, str(tmp_path)).pixels) == 2
    told = capsys.readouterr().out
    assert "2 images from 8 files" in told and "2 .heic: no decoder (pillow-heif has it)" in told
    assert "1 .jpg: not an image" in told and "1 .png: " in told
    assert "1 .tif: mode F has no fixed range" in told and "1 .tif: mode I has no" in told


def test_load_images_keeps_a_picture_whose_metadata_is_broken(tmp_path):
    for name, exif in (("a", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), ("b", b"Exif\0\0nonsense")):
        Image.new("RGB", (9, 9), GREEN).save(tmp_path / f"{name}.jpg", exif=exif)
    assert len(helpers.load_images(8, str(tmp_path)).pixels) == 2


def test_load_images_follows_links_but_not_in_circles_and_skips_hidden_names(tmp_path):
    save(tmp_path / "elsewhere" / "a.png")
    photos = tmp_path / "photos"
    save(photos / "b.png")
    save(photos / ".ipynb_checkpoints" / "b.png")
    save(photos / ".hidden.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "circle").symlink_to(photos)
    assert len(helpers.load_images(8, str(photos)).pixels) == 2


def test_load_images_has_a_sentence_for_each_wrong_folder(tmp_path):
    save(tmp_path / "one" / "a.png")
    (tmp_path / "all.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name, error, sentence in [
            ("missing", FileNotFoundError, "not there"),
            ("all.zip", FileNotFoundError, r"is a file \(unpack an archive first\)"),
            ("empty", ValueError, "0 images from 0 files"),
            ("one", ValueError, "1 images from 1 files")]:
        with pytest.raises(error, match=f"data_dir='.*{name}'.*{sentence}.*; expected"):
            helpers.load_images(8, str(tmp_path / name))


def test_load_images_refuses_what_does_not_fit_into_memory(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    with pytest.raises(MemoryError, match="2 images of 10000000×10000000 .* image_size=.* would"):
        helpers.load_images(10_000_000, str(tmp_path))


def test_load_images_reads_cifar10(monkeypatch):
    class Cifar:
        data = np.full((3, 32, 32, 3), 9, np.uint8)

    monkeypatch.setattr(helpers, "CIFAR10", lambda *_, **__: Cifar)
    for size in (32, 16):
        pixels, name, _ = helpers.load_images(size)
        assert name == "CIFAR-10"
        assert torch.equal(pixels, torch.full((3, 3, size, size), 9, dtype=torch.uint8))


def test_to_uint8_inverts_sample_real_and_clamps(vitgan):
    a = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(helpers.to_uint8(vitgan.sample_real(a, 1, flip=False)), a)
    assert helpers.to_uint8(torch.tensor([-7.0, 7.0, 0.0])).tolist() == [0, 255, 128]


def test_sample_real_draws_every_image_and_mirrors_half(vitgan):
    a = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 2, 2).clone()
    a[..., 0] = 255
    drawn = helpers.to_uint8(vitgan.sample_real(a, 800, flip=True))[:, 0, 0]
    assert drawn.amin(1).bincount(minlength=8).min() > 50
    assert (drawn[:, 0] == 255).float().mean().item() == pytest.approx(0.5, abs=0.06)
