"""Data: folders of all kinds, the digits, and CIFAR-10 when it is out of reach."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import helpers

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, color=GREEN, mode="RGB", size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.mark.parametrize(
    "mode, color, size, expected",
    [
        ("RGB", GREEN, (20, 20), GREEN),
        ("RGB", GREEN, (64, 20), GREEN),
        ("RGB", GREEN, (3, 5), GREEN),
        ("L", 77, (8, 8), (77, 77, 77)),
        ("1", 1, (8, 8), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), (20, 20), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (20, 20), (10, 20, 30)),
        ("LA", (9, 255), (20, 20), (9, 9, 9)),
        ("CMYK", (0, 255, 255, 0), (20, 20), RED),
    ],
)
def test_load_images_makes_every_file_square_and_rgb(tmp_path, mode, color, size, expected):
    ending = "tif" if mode == "CMYK" else "png"
    for name in ("cats/a", "b"):  # with and without a folder per class
        save(tmp_path / f"{name}.{ending}", color, mode, size)
    data = helpers.load_images(8, str(tmp_path))
    assert data.pixels.shape == (2, 3, 8, 8) and data.pixels.dtype == torch.uint8
    assert data.name == tmp_path.name and data.labels is None
    assert (data.pixels == torch.tensor(expected, dtype=torch.uint8).view(3, 1, 1)).all()


def test_labels_are_the_folders_and_the_digest_is_of_the_files(tmp_path):
    for name, color in (("dogs/deep/a.png", RED), ("cats/b.png", GREEN), ("cats/c.jpg", RED)):
        save(tmp_path / name, color)
    data = helpers.load_images(8, str(tmp_path))
    assert data.labels.tolist() == [0, 0, 1] and data.labels.dtype == torch.int64
    (tmp_path / "dogs").rename(tmp_path / "hounds")
    assert helpers.load_images(8, str(tmp_path)).digest == data.digest
    save(tmp_path / "cats/b.png", (0, 255, 1))
    assert helpers.load_images(8, str(tmp_path)).digest != data.digest
    digits = helpers.load_images(8, "digits")
    assert digits.labels.shape == (1797,) and digits.digest == "digits"


def test_to_square_rgb_turns_photographs_upright_and_cuts_the_middle():
    """Phones store how the picture must be turned, not the turned picture."""
    stored, turn = Image.new("RGB", (16, 32), RED), Image.Exif()
    stored.paste(GREEN, (0, 0, 8, 32))  # green on the left
    turn[0x0112] = 6  # to be turned clockwise: green on top
    stored.info["exif"] = turn.tobytes()
    upright = helpers.to_square_rgb(stored, 8)
    assert (upright[1] == GREEN).all() and (upright[6] == RED).all()
    assert (helpers.to_tensor([upright], 8)[0, :, 1].T.numpy() == GREEN).all()
    stripes = np.full((8, 32, 3), 99, np.uint8)
    stripes[:, 12:20] = 200
    assert (helpers.to_square_rgb(Image.fromarray(stripes), 4) > 190).all()


def test_load_images_says_what_it_leaves_out(tmp_path, capsys):
    save(tmp_path / "a.png", RED)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    for mode in ("F", "I", "I;16"):
        save(tmp_path / f"{mode[0]}{len(mode)}.tif", 7, mode)
    for i, exif in enumerate((b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense")):
        Image.new("RGB", (9, 9), GREEN).save(tmp_path / f"broken-exif-{i}.jpg", exif=exif)
    save(tmp_path / ".ipynb_checkpoints" / "b.png")
    save(tmp_path / ".hidden.png")
    assert len(helpers.load_images(8, str(tmp_path)).pixels) == 3
    said = capsys.readouterr().out
    assert "3 images from 8 files; left out 5, the first is F1.tif: mode F has more than" in said


def test_load_images_has_a_sentence_for_each_wrong_folder(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        save(tmp_path / name)
    (tmp_path / "all.zip").write_bytes(b"PK")
    for name, size, error, sentence in [
        ("all.zip", 8, FileNotFoundError, r"all.zip' is a file \(unpack an archive first\); expec"),
        ("one", 8, ValueError, "one': 1 images from 1 files; expected 2 or more"),
        ("two", 10**7, MemoryError, "Unable to allocate .*10000000, 10000000"),
    ]:
        with pytest.raises(error, match=sentence):
            helpers.load_images(size, str(tmp_path / name))


def test_load_images_reads_cifar10_with_its_labels(monkeypatch):
    cifar10 = SimpleNamespace(data=np.full((3, 32, 32, 3), 9, np.uint8), targets=[1, 0, 2])
    monkeypatch.setattr(helpers, "CIFAR10", lambda *_, **__: cifar10)
    data = helpers.load_images(16)
    assert data.name == "CIFAR-10" and data.labels.tolist() == [1, 0, 2]
    assert data.pixels.shape == (3, 3, 16, 16) and (data.pixels == 9).all()


def test_a_server_out_of_reach_costs_cifar10_and_no_more(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(helpers.CIFAR10, "url", "http://127.0.0.1:9/c.gz")  # nobody answers
    with pytest.warns(UserWarning, match="left out: CIFAR-10, digits take its place"):
        data = helpers.load_images(8)
    assert data.name == "digits" and data.pixels.max() == 255
