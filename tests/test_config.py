"""Settings: each wrong one raises one sentence with its name and value; the right ones combine."""
import dataclasses
import re
import shlex

import pytest
import torch

import helpers

PIXELS, CPU = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.device("cpu")
PLAIN = helpers.Images(PIXELS, "cats", {})
WRONG = [  # settings, what the sentence is
    ("width=two", "^width='two': .* valid integer"), ("bcr=inf", "^bcr='inf': .* finite number"),
    ("flip=maybe", "^flip='maybe': .* valid boolean"), ("lr=0.1", "^lr='0.1': Unexpected keyword"),
    ("lr_g=-1 depth=x", "^depth='x': .*; lr_g='-1': "),
    ("patch_size=3", "^image_size=16 must be a multiple of patch_size=3"),
    ("heads=3", "^width=32 must be a multiple of heads=3"),
    ("precision=float8", "^precision='float8': .*'float16'"),
    ("augment=colour", "augment='colour': expected color,translation,cutout"),
    ("'augment=color cutout'", "augment='color cutout': .* joined by commas"),
    ("fast", "^'fast' is no setting; expected NAME=VALUE, as in lr_g=0.003.$"),
    ("profile=colb", "^profile='colb': expected auto, paper, colab, cpu, smoke"),
    ("'data_dir=my photos'", "^data_dir='my photos' is not there; expected a folder at /.*photos.")]

@pytest.mark.parametrize("text, expected", WRONG, ids=[text for text, _ in WRONG])
def test_main_says_in_a_sentence_what_is_wrong_and_what_it_expects(
        tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    words = ["profile=smoke", "data_dir=digits", "image_size=16", *shlex.split(text)]
    with pytest.raises(SystemExit) as caught:
        helpers.main(words)
    sentence, usage = caught.value.code.split("\n\n")
    assert re.search(expected, sentence) and "NAME=VALUE" in usage
    assert "\n" not in sentence and "ArgsKwargs" not in sentence

def test_configure_follows_device_and_data_but_what_is_chosen_wins(vitgan):
    digits = helpers.load_images(16, "digits")
    assert digits.settings["flip"] is False and digits.settings["lr_g"] == 0.003
    text = "lr_g=0.02 flip=True augment=color,cutout seed=7 max_minutes=30 total_images=1_000"
    chosen = dict(lr_g=0.02, flip=True, augment="color,cutout", seed=7, max_minutes=30.0,
                  total_images=1000)
    for kind, profile in (("cpu", "cpu"), ("mps", "cpu"), ("cuda", "colab")):
        plain = vitgan.configure(PLAIN, CPU, profile)[1]
        expected = dataclasses.replace(plain, **digits.settings | chosen)
        asked = helpers.parse_settings(text)
        assert vitgan.configure(digits, torch.device(kind), **asked) == (profile, expected)
    with pytest.raises(ValueError, match="^image_size=8: set it where images are loaded$"):
        vitgan.configure(PLAIN, CPU, image_size=8)
