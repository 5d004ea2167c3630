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
    pixels, *told = helpers.load_images(8, str(tmp_path))
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8
    assert told == [tmp_path.name, {}, str(tmp_path)]
    assert (pixels == torch.tensor(expected, dtype=torch.uint8).view(3, 1, 1)).all()

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

def test_load_images_counts_what_it_leaves_out_by_reason(tmp_path, capsys):
    save(tmp_path / "a.png", RED)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    for name in ("c.heic", "d.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    for mode in ("F", "I"):
        save(tmp_path / f"{mode}.tif", 7, mode)
    for i, exif in enumerate((b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense")):
        Image.new("RGB", (9, 9), GREEN).save(tmp_path / f"broken-exif-{i}.jpg", exif=exif)
    assert len(helpers.load_images(8, str(tmp_path)).pixels) == 3
    told = capsys.readouterr().out
    for words in ("3 images from 9 files", "2 .heic: cannot identify image file", "1 .png: ",
                  "1 .jpg: cannot", "1 .tif: mode F has", "as an 8-bit PNG"):
        assert words in told

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
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        save(tmp_path / name)
    (tmp_path / "all.zip").write_bytes(b"PK")
    for name, size, error, sentence in [
            ("all.zip", 8, FileNotFoundError, r"a file \(unpack an archive first\); expected"),
            ("one", 8, ValueError, "1 images from 1 files; expected 2 or more"),
            ("two", 10**7, MemoryError, r"2 images of 10000000×10000000 .*; image_size=\d+ would")]:
        with pytest.raises(error, match=f"data_dir='.*{name}'.*{sentence}"):
            helpers.load_images(size, str(tmp_path / name))

def test_load_images_reads_cifar10_one_process_at_a_time(monkeypatch, tmp_path):
    def cifar10(*_, **__):
        with pytest.raises(TimeoutError):  # another process waits
            helpers.FileLock("cifar10.lock").acquire(timeout=0)
        return SimpleNamespace(data=np.full((3, 32, 32, 3), 9, np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(helpers, "CIFAR10", cifar10)
    pixels, name, *_ = helpers.load_images(16)
    assert name == "CIFAR-10" and pixels.shape == (3, 3, 16, 16) and (pixels == 9).all()
