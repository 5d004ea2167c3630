"""Settings: each wrong one raises a message with its name; the right ones combine."""

import dataclasses
import re
import shlex

import pytest
import torch

import helpers

PIXELS, CPU = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.device("cpu")
PLAIN = helpers.Images(PIXELS, "cats")
WRONG = {  # settings: the message
    "width=two": r"width\n.* valid integer.*'two'",
    "bcr=inf": r"bcr\n.* finite number",
    "lr=0.1": r"lr\n.*Unexpected keyword",
    "lr_g=-1 depth=x": r"(?s)depth\n.*lr_g\n",
    "patch_size_g=3": "image_size=16 must be a multiple of patch_size_g=3",
    "heads=3": "width=32 must be a multiple of heads=3",
    "precision=float8": r"precision\n.*'float16'",
    "augment=colour": "augment='colour': expected color,translation,cutout",
    "'augment=color cutout'": "augment='color cutout': .* joined by commas",
    "fast": "^'fast' is no setting; expected NAME=VALUE, as in lr_g=0.003.",
    "profile=colb": "^profile='colb': expected auto, paper, colab, cpu, smoke",
    "'data_dir=my photos'": "^data_dir='my photos' is not there; expected a folder at /.*photos.",
}


@pytest.mark.parametrize("text", WRONG)
def test_main_says_what_is_wrong_and_what_it_expects(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    words = ["profile=smoke", "data_dir=digits", "image_size=16", *shlex.split(text)]
    with pytest.raises(SystemExit) as caught:
        helpers.main(words)
    assert re.search(WRONG[text], caught.value.code) and "NAME=VALUE" in caught.value.code


def test_configure_follows_device_and_data_but_what_is_chosen_wins(vitgan):
    digits = helpers.load_images(16, "digits")
    assert vitgan.DIGITS["flip"] is False and vitgan.DIGITS["lr_g"] == 0.003
    text = "lr_g=0.02 flip=True augment=color,cutout seed=7 max_minutes=30 total_images=1_000"
    chosen = dict(lr_g=0.02, flip=True, augment="color,cutout", seed=7, max_minutes=30.0)
    chosen["total_images"] = 1000
    for kind, profile in (("cpu", "cpu"), ("mps", "cpu"), ("cuda", "colab")):
        plain = vitgan.configure(PLAIN, CPU, profile)[1]
        expected = dataclasses.replace(plain, **vitgan.DIGITS | chosen)
        settings = helpers.parse_settings(text)
        assert vitgan.configure(digits, torch.device(kind), **settings) == (profile, expected)
    folder = helpers.Images(PIXELS, "digits", digest="1f")  # one's own, of that name
    assert vitgan.configure(folder, CPU) == vitgan.configure(PLAIN, CPU)
    with pytest.raises(ValueError, match="^image_size=8: set it where images are loaded$"):
        vitgan.configure(PLAIN, CPU, image_size=8)


def test_run_folder_depends_on_what_trains_and_not_on_names_or_length(make_config):
    cats = [helpers.Images(PIXELS, "train", digest=digest) for digest in ("1f", "2e")]
    runs = [(0, {}), (0, {"total_images": 99}), (0, {"compile": True}), (0, {"seed": 9}), (1, {})]
    folders = [
        helpers.run_folder("runs", "cpu", cats[i], make_config(**changed), {})
        for i, changed in runs
    ]
    assert folders[0] == folders[1] == folders[2] and len(set(folders)) == 3


def test_a_hash_of_code_is_the_same_under_every_python():
    found = helpers.code_of(sample_of_code)
    assert found == {"Sample": "f693916d", "WEIGHTS": "bc7cd15a", "sample_of_code": "575912d1"}


WEIGHTS = {"a": (1, 2.5, None)}


class Sample:
    """A class with what differs between syntax trees."""

    size: int = 3

    @property
    def area(self):
        return self.size**2

    @staticmethod
    def text(*values, sep=", ", **rest):
        return f"{values!r:>10}{sep}joined" + repr([x for x in rest] or {**rest})


@torch.no_grad()
def sample_of_code(x, /, y=WEIGHTS, *, z=()):
    """Nothing of this docstring counts."""
    with open(x) as a, open(x) as b:
        return [lambda q: (q, *z, a, b) for _ in y if (w := Sample())], w
