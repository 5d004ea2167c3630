"""Settings: each wrong one raises one sentence with its name and value; the right ones combine."""
import dataclasses

import pytest
import torch

import helpers

PIXELS, CPU = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.device("cpu")
PLAIN = helpers.Images(PIXELS, "cats", {})
WRONG = [  # field, value, words of what is expected
    ("width", "two", "valid integer"), ("width", 16.5, "valid integer"),
    ("width", -16, "greater than 0"), ("overlap", -1, "or equal to 0"),
    ("lr_g", float("nan"), "finite number"),
    ("bcr", "inf", "finite number"), ("flip", "maybe", "valid boolean"),
    ("patch_size", 3, "must be a multiple of"),
    ("patch_size_d", 5, "must be a multiple of"),
    ("heads", 3, "must be a multiple of"), ("precision", "float8", "'float16'"),
    ("augment", "colour", "translation, cutout"), ("augment", "color cutout", "joined by commas"),
    ("lr", 0.1, "nexpected"), ("pool", "mean", "nexpected")]

@pytest.mark.parametrize("field, value, expected", WRONG)
def test_configure_names_field_value_and_what_is_expected(vitgan, field, value, expected):
    with pytest.raises(ValueError) as caught:
        vitgan.configure(PLAIN, CPU, "smoke", **{field: value})
    sentence = str(caught.value)
    assert "\n" not in sentence and "ArgsKwargs" not in sentence
    assert f"{field}={value!r}" in sentence and expected in sentence

def test_configure_names_every_wrong_setting(vitgan):
    with pytest.raises(ValueError, match=r"^lr_g=-1: .*; depth='x': |^depth='x': .*; lr_g=-1: "):
        vitgan.configure(PLAIN, CPU, "smoke", lr_g=-1, depth="x")

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
