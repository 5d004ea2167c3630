"""Data: folders of all kinds, the digits, and CIFAR-10 when it is out of reach. No network: local sockets only."""

import hashlib
import socket
import time
import warnings

import helpers
import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, colour, mode="RGB", size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("names", [("a.png", "b.jpg"), ("cats/a.png", "dogs/b.JPEG"), ("x/y/z/a.bmp", "b.webp")])
def test_folder_with_and_without_class_folders(tmp_path, names):
    for name in names:
        save(tmp_path / name, RED)
    pixels, name, mirrorable = helpers.load_images(8, data_dir=str(tmp_path))
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert name == tmp_path.name and mirrorable is True
    means = pixels.float().mean((0, 2, 3))
    assert means[0] > 250 and means[1:].max() < 5  # JPEG's and WebP's red is 254


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 77, (77, 77, 77)), ("LA", (77, 255), (77, 77, 77)), ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("P", 0, None), ("1", 1, (255, 255, 255)), ("CMYK", (0, 255, 255, 0), (255, 0, 0))])
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), colour, mode)
    pixels = helpers.load_folder(tmp_path, 8).pixels
    assert pixels.shape == (1, 3, 8, 8)
    assert expected is None or tuple(pixels[0, :, 4, 4].tolist()) == expected


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (64, 20), (20, 64), (1, 1)])
def test_every_size_becomes_square(tmp_path, size):
    save(tmp_path / "a.png", GREEN, size=size)
    pixels = helpers.load_folder(tmp_path, 8).pixels
    assert pixels.shape == (1, 3, 8, 8) and torch.equal(pixels[0, :, 0, 0], torch.tensor(GREEN, dtype=torch.uint8))


def test_the_central_square_is_cut_and_averaged(tmp_path):
    picture = np.zeros((8, 32, 3), np.uint8)
    picture[:, 12:20:2] = 200  # stripes in the middle 8 columns, black besides
    picture[:, :12] = 99
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert (helpers.load_folder(tmp_path, 4).pixels == 100).all()


def test_the_right_size_is_left_alone(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(helpers.load_folder(tmp_path, 8).pixels[0].permute(1, 2, 0), picture)


def test_16_bit_grey_keeps_its_shades(tmp_path):
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "a.png")
    assert abs(int(helpers.load_folder(tmp_path, 8).pixels[0, 0, 0, 0]) - 30_000 / 257) <= 1


def test_photographs_stand_upright(tmp_path):
    """Phones store how the picture must be turned, not the turned picture."""
    stored, turn = Image.new("RGB", (16, 16), RED), Image.Exif()
    stored.paste(GREEN, (0, 0, 8, 16))  # green on the left
    turn[0x0112] = 6  # to be turned clockwise: green on top
    stored.save(tmp_path / "a.png", exif=turn)
    pixels = helpers.load_folder(tmp_path, 8).pixels[0]
    assert pixels[:, 1, 6].tolist() == [*GREEN] and pixels[:, 6, 1].tolist() == [*RED]


@pytest.mark.fault
def test_unreadable_files_are_named_and_skipped(tmp_path):
    save(tmp_path / "good.png", RED)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "bad.jpg").write_bytes(b"not an image")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("left alone")
    with pytest.warns(UserWarning, match="skipped 2 unreadable") as caught:
        assert len(helpers.load_folder(tmp_path, 8).pixels) == 1
    message = str(caught[0].message)
    assert "bad.jpg" in message and "cut.png" in message and "notes" not in message


def test_many_unreadable_files_make_one_short_warning(tmp_path):
    save(tmp_path / "good.png", RED)
    for i in range(50):
        (tmp_path / f"bad{i:02d}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 50 .*bad00.png.* and 45 more") as caught:
        helpers.load_folder(tmp_path, 8)
    assert len(caught) == 1


def test_readable_folders_raise_no_warning(tmp_path):
    save(tmp_path / "a.png", RED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        helpers.load_folder(tmp_path, 8)


@pytest.mark.fault
def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.* no readable image; expected .*png"):
        helpers.load_images(8, data_dir=str(tmp_path))


@pytest.mark.fault
def test_folder_of_broken_files_only(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="bad.png"), pytest.raises(FileNotFoundError, match="no readable image"):
        helpers.load_folder(tmp_path, 8)


@pytest.mark.fault
def test_missing_folder_and_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match=f"{name}.* is not a folder"):
            helpers.load_images(8, data_dir=str(tmp_path / name))


# --------------------------------------------------------------------------------------------------------------- digits


def test_digits():
    pixels, name, mirrorable = helpers.load_digits(32)
    assert pixels.shape == (1797, 3, 32, 32) and pixels.dtype == torch.uint8 and "digits" in name
    assert mirrorable is False  # a mirrored 2 is no digit
    assert (pixels[:, :1] == pixels).all() and pixels.min() == 0 and pixels.max() == 255
    assert pixels[:, 0, 0, 0].float().mean() < 20 < pixels[:, 0, 12:20, 12:20].float().mean()  # white on black


def test_digits_by_name():
    assert torch.equal(helpers.load_images(8, data_dir="digits").pixels, helpers.load_digits(8).pixels)


def test_digits_at_their_own_size_are_untouched():
    from sklearn.datasets import load_digits

    expected = load_digits().images * 255 / 16
    assert np.abs(helpers.load_digits(8).pixels[:, 0].numpy() - expected).max() <= 0.5


# ------------------------------------------------------------------------------------------------------------- CIFAR-10


@pytest.fixture
def serve_cifar(serve, monkeypatch):
    """Put CIFAR-10 behind a local socket."""
    return lambda behave: monkeypatch.setattr(helpers, "CIFAR10_URL", serve(behave))


def falls_back_to_digits(tmp_path, limit):
    start = time.monotonic()
    with pytest.warns(UserWarning, match="(?s)CIFAR-10 could not be had .*digits.*data_dir"):
        images = helpers.load_images(8, root=tmp_path, limit_seconds=limit)
    assert len(images.pixels) == 1797 and "digits" in images.name
    return time.monotonic() - start


@pytest.mark.fault
def test_host_that_never_answers_is_given_up_in_time(serve_cifar, tmp_path):
    serve_cifar(lambda connection: None)
    assert falls_back_to_digits(tmp_path, 0.5) < 0.5 + 2


@pytest.mark.fault
def test_host_that_drips_its_answer_is_given_up_in_time(serve_cifar, tmp_path):
    """Each byte restarts the socket's own time-out; only a limit on the whole helps."""
    def drip(connection):
        for byte in b"HTTP/1.1 200 OK\r\n" * 10:
            connection.send(bytes([byte]))
            time.sleep(0.1)

    serve_cifar(drip)
    assert falls_back_to_digits(tmp_path, 0.5) < 0.5 + 2


@pytest.mark.fault
def test_closed_port_is_given_up_at_once(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(helpers, "CIFAR10_URL", f"http://127.0.0.1:{port}/cifar.tar.gz")
    assert falls_back_to_digits(tmp_path, 30) < 5


@pytest.mark.fault
@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 503 Busy\r\n\r\n"])
def test_refusals_are_given_up_at_once(serve_cifar, tmp_path, answer):
    serve_cifar(lambda connection: (connection.recv(4096), connection.send(answer), connection.close()))
    assert falls_back_to_digits(tmp_path, 30) < 5


@pytest.mark.fault
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_captive_portals_that_do_not_speak_http_are_given_up(serve_cifar, tmp_path):
    serve_cifar(lambda connection: (connection.recv(4096), connection.send(b"hello?\r\n\r\n"), connection.close()))
    assert falls_back_to_digits(tmp_path, 30) < 5


class FakeCIFAR10:
    """In place of torchvision's: three 32 x 32 pictures, once they were unpacked."""

    filename = "cifar-10-python.tar.gz"

    def __init__(self, root, download=False):
        if not (root / "unpacked").exists():
            if not download:
                raise RuntimeError("Dataset not found or corrupted.")
            (root / "unpacked").write_bytes((root / self.filename).read_bytes())
        self.data = np.full((3, 32, 32, 3), 9, np.uint8)


@pytest.mark.parametrize("size", [32, 16])
def test_cifar_is_downloaded_once(serve_cifar, monkeypatch, tmp_path, size):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)
    monkeypatch.setattr(helpers, "CIFAR10_SHA256", hashlib.sha256(b"abc").hexdigest())
    serve_cifar(lambda c: (c.recv(4096), c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), c.close()))
    for _ in range(2):
        pixels, name, mirrorable = helpers.load_images(size, root=tmp_path)
        assert (name, mirrorable) == ("CIFAR-10", True)
        assert torch.equal(pixels, torch.full((3, 3, size, size), 9, dtype=torch.uint8))
        monkeypatch.setattr(helpers, "download", lambda *_: pytest.fail("asked the network"))
    assert (tmp_path / "unpacked").read_bytes() == b"abc"


@pytest.mark.fault
def test_an_archive_with_another_hash_falls_back(serve_cifar, tmp_path):
    serve_cifar(lambda c: (c.recv(4096), c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), c.close()))
    falls_back_to_digits(tmp_path, 3)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- sampling


def test_real_images_are_drawn_from_minus_1_to_1_and_half_are_mirrored(vitgan):
    picture = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    picture[..., 0] = 255
    x = vitgan.sample_real(picture, 1000, flip=True)
    assert x.shape == (1000, 3, 4, 4) and set(x.unique().tolist()) == {-1, 1}
    assert (x[:, 0, 0, 0] == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (vitgan.sample_real(picture, 100, flip=False)[:, :, :, 0] == 1).all()


def test_every_real_image_is_drawn(vitgan):
    pictures = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    drawn = helpers.to_uint8(vitgan.sample_real(pictures, 400, flip=False))
    counts = drawn[:, 0, 0, 0].bincount(minlength=8)
    assert len(counts) == 8 and counts.min() > 25
