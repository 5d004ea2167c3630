"""Data: folders of all kinds, the digits, and CIFAR-10 when it is out of reach."""

import numpy as np
import pytest
import torch
from PIL import Image

import helpers

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, color, mode="RGB", size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.mark.parametrize("mode, color, size, expected", [
    ("RGB", GREEN, (20, 20), GREEN), ("RGB", GREEN, (64, 20), GREEN), ("RGB", GREEN, (3, 5), GREEN), ("L", 77, (8, 8), (77, 77, 77)),
    ("RGBA", (10, 20, 30, 0), (20, 20), (255, 255, 255)), ("RGBA", (10, 20, 30, 255), (20, 20), (10, 20, 30)),
    ("I;16", 30_000, (20, 20), (117, 117, 117)), ("CMYK", (0, 255, 255, 0), (20, 20), RED)])
def test_load_images_makes_every_file_square_and_rgb(tmp_path, mode, color, size, expected):
    ending = "tif" if mode == "CMYK" else "png"
    for name in ("cats/a", "b"):  # with and without a folder per class
        save(tmp_path / f"{name}.{ending}", color, mode, size)
    pixels, name = helpers.load_images(8, str(tmp_path))
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8 and name == tmp_path.name
    assert (pixels == torch.tensor(expected, dtype=torch.uint8).view(3, 1, 1)).all()


def test_square_turns_photographs_upright_and_cuts_the_middle():
    """Phones store how the picture must be turned, not the turned picture."""
    stored, turn = Image.new("RGB", (16, 32), RED), Image.Exif()
    stored.paste(GREEN, (0, 0, 8, 32))  # green on the left
    turn[0x0112] = 6  # to be turned clockwise: green on top
    stored.info["exif"] = turn.tobytes()
    upright = helpers.square(stored, 8)
    assert (upright[1] == GREEN).all() and (upright[6] == RED).all()
    stripes = np.full((8, 32, 3), 99, np.uint8)
    stripes[:, 12:20] = np.tile([0, 200], 4)[:, None]
    assert (helpers.square(Image.fromarray(stripes), 4) == 100).all()


def test_load_images_names_unreadable_files_and_wants_two(tmp_path):
    save(tmp_path / "a.png", RED)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("left alone")
    for enough in (False, True):
        with pytest.warns(UserWarning, match=r"skipped 2 unreadable file\(s\) .*: bad.jpg, cut.png$"):
            if enough:
                assert len(helpers.load_images(8, str(tmp_path)).pixels) == 2
            else:
                with pytest.raises(FileNotFoundError, match="1 readable images; expected"):
                    helpers.load_images(8, str(tmp_path))
        save(tmp_path / "b.png", GREEN)
    with pytest.raises(FileNotFoundError, match="0 readable images"):
        helpers.load_images(8, str(tmp_path / "missing"))


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_load_images_takes_the_digits_when_cifar10_is_out_of_reach(monkeypatch, error):
    def unreachable(root, download):
        raise error

    monkeypatch.setattr(helpers, "CIFAR10", unreachable)
    with pytest.warns(UserWarning, match="CIFAR-10 could not be downloaded .*digits.*data_dir"):
        pixels, name = helpers.load_images(16)
    assert name == "digits" and torch.equal(pixels, helpers.load_images(16, "digits").pixels)
    assert pixels.shape == (1797, 3, 16, 16) and pixels.min() == 0 and pixels.max() == 255 and (pixels[:, :1] == pixels).all()


def test_load_images_reads_cifar10(monkeypatch):
    monkeypatch.setattr(helpers, "CIFAR10", lambda *_, **__: helpers.types.SimpleNamespace(data=np.full((3, 32, 32, 3), 9, np.uint8)))
    for size in (32, 16):
        pixels, name = helpers.load_images(size)
        assert name == "CIFAR-10" and torch.equal(pixels, torch.full((3, 3, size, size), 9, dtype=torch.uint8))


def test_fixed_subset_is_fixed_shuffled_and_without_repeats():
    a = torch.arange(100)
    subset = helpers.fixed_subset(a, 10).tolist()
    torch.manual_seed(5)
    assert subset == helpers.fixed_subset(a, 10).tolist() != sorted(subset) and len(set(subset)) == 10
    assert sorted(helpers.fixed_subset(a, 1000).tolist()) == list(range(100))


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
