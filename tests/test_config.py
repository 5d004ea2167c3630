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
    ("width=two", "^width='two': .* valid integer"), ("width=0", "^width='0': .* greater than 0"),
    ("overlap=-1", "^overlap='-1': .* or equal to 0"), ("bcr=inf", "^bcr='inf': .* finite number"),
    ("flip=maybe", "^flip='maybe': .* valid boolean"), ("lr=0.1", "^lr='0.1': Unexpected keyword"),
    ("lr_g=-1 depth=x", "^depth='x': .*; lr_g='-1': "),
    ("patch_size=3", "^image_size=16 must be a multiple of patch_size=3"),
    ("patch_size_d=5", "^image_size=16 must be a multiple of patch_size_d=5"),
    ("heads=3", "^width=32 must be a multiple of heads=3"),
    ("precision=float8", "^precision='float8': .*'float16'"),
    ("augment=colour", "augment='colour': expected color, translation, cutout"),
    ("'augment=color cutout'", "augment='color cutout': .* joined by commas"),
    ("fast", "^'fast' is no setting; expected NAME=VALUE, as in lr_g=0.003.$"),
    ("profile=colb", "^profile='colb': expected auto, paper, colab, cpu, smoke"),
    ("'data_dir=my photos'", "^data_dir='my photos' is not there; expected a folder of images.$")]

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

def test_parse_settings_keeps_what_is_quoted_and_later_signs_of_equality():
    asked = helpers.parse_settings('data_dir="my photos" lr_g=0.003 \'augment=a=b\'')
    assert asked == {"data_dir": "my photos", "lr_g": "0.003", "augment": "a=b"}

def test_configure_reads_strings(vitgan):
    text = "lr_g=0.003 flip=False augment=color,cutout seed=7 max_minutes=30 total_images=1_000"
    config = vitgan.configure(PLAIN, CPU, "smoke", **helpers.parse_settings(text))[1]
    chosen = dict(lr_g=0.003, flip=False, augment="color,cutout", seed=7, max_minutes=30.0,
                  total_images=1000)
    assert config == dataclasses.replace(vitgan.configure(PLAIN, CPU, "smoke")[1], **chosen)
    assert type(config.seed) is int and type(config.max_minutes) is float

def test_configure_follows_the_data_but_what_is_chosen_wins(vitgan):
    digits = helpers.load_images(16, "digits")
    suits = digits.settings
    assert suits["flip"] is False and suits["augment"] == "translation,cutout"
    plain = vitgan.configure(PLAIN, CPU, "cpu")[1]
    assert vitgan.configure(digits, CPU, "cpu") == ("cpu", dataclasses.replace(plain, **suits))
    mine = dict(flip=True, augment="", lr_g=0.02)
    config = vitgan.configure(digits, CPU, "cpu", **mine)[1]
    assert config == dataclasses.replace(plain, **suits | mine)

@pytest.mark.parametrize("kind, profile", [("cpu", "cpu"), ("mps", "cpu"), ("cuda", "colab")])
def test_configure_picks_a_profile_for_the_device_and_takes_the_images_size(vitgan, kind, profile):
    name, config = vitgan.configure(PLAIN, torch.device(kind))
    assert (name, config.image_size) == (profile, 16)
    assert config == vitgan.configure(PLAIN, CPU, profile)[1]
