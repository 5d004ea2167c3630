"""Settings: every wrong value raises one sentence that names the field, its value and what is allowed."""

import dataclasses

import pytest
import torch

import helpers

WRONG = [  # field, value, a word of what is allowed
    ("image_size", 0, "above 0"), ("width", -16, "above 0"), ("overlap", -1, "0 or more"), ("lr_g", float("nan"), "finite"),
    ("bcr", float("inf"), "finite"), ("width", 16.0, "type int"), ("batch_size", True, "type int"), ("heads", "two", "type int"),
    ("data_dir", None, "type str"), ("flip", 1, "type bool"), ("patch_size", 3, "multiple of patch_size"), ("patch_size_d", 3, "and patch_size_d"),
    ("heads", 3, "width"), ("pool", "max", "class or mean"), ("adversarial_on", "real", "augmented or plain"),
    ("precision", "float8", "float16"), ("augment", "colour", "translation"), ("augment", "color cutout", "joined by commas")]


@pytest.mark.parametrize("field, value, allowed", WRONG)
def test_config_names_field_value_and_what_is_allowed(make_config, field, value, allowed):
    with pytest.raises(ValueError) as caught:
        make_config(**{field: value})
    named, _, rule = str(caught.value).partition("allowed: ")
    assert f"{field}={value!r}" in named and allowed in rule and rule.endswith(".") and "\n" not in rule


@pytest.mark.parametrize("name, overrides, sentence", [
    ("colb", {}, "'colb' is no profile; did you mean colab?"), ("zzz", {}, "paper or colab or cpu or tiny or smoke?"),
    ("cpu", {"blocks_": 1, "lr": 1.0}, "'blocks_' is no setting"), ("cpu", {"lr_gg": 1.0}, "did you mean lr_g?"),
    ("cpu", {"data": "photos"}, "did you mean data_dir?")])
def test_config_profile_suggests_the_nearest_name(vitgan, name, overrides, sentence):
    with pytest.raises(ValueError) as caught:
        vitgan.Config.profile(name, **overrides)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("n, name, suits", [(20_000, "cats", []), (9_999, "cats", ["FEW_IMAGES"]), (1_797, "digits", ["FEW_IMAGES", "DIGITS"])])
def test_config_profile_follows_the_data_but_overrides_win(vitgan, n, name, suits):
    data, plain = helpers.Images(torch.zeros(n, 1, dtype=torch.uint8), name), vitgan.Config.profile("cpu")
    changes = {field: value for table in suits for field, value in getattr(vitgan, table).items()}
    assert vitgan.Config.profile("cpu", data) == dataclasses.replace(plain, **changes)
    mine = dict(augment="", adversarial_on="plain", flip=True, phase_step=0.4, lr_g=0.0045, lr_d=0.0045)
    assert vitgan.Config.profile("cpu", data, **mine) == dataclasses.replace(plain, **mine)


def test_configure_loads_the_data_that_it_adapts_to(vitgan):
    config, data = vitgan.configure("smoke", lr_g=0.02)
    assert (data.name, config.lr_g, config.lr_d, config.flip) == ("digits", 0.02, vitgan.DIGITS["lr_d"], False)


def test_choices_turns_minutes_into_a_limit_and_picks_a_profile(vitgan, monkeypatch):
    assert vitgan.choices({"profile": "cpu", "minutes": 3, "seed": 1}) == ("cpu", dict(seed=1, max_minutes=3, total_images=10**9))
    assert vitgan.choices({"profile": "cpu", "minutes": 3, "total_images": 9}) == ("cpu", dict(max_minutes=3, total_images=9))
    monkeypatch.setenv("VITGAN_PROFILE", "smoke")
    assert vitgan.choices({}) == ("smoke", {})
    monkeypatch.delenv("VITGAN_PROFILE")
    assert vitgan.choices({})[0] == ("colab" if helpers.pick_device().type == "cuda" else "cpu")


def test_parse_settings_reads_numbers_words_and_quotes():
    text = "lr_g=0.003 flip=False augment=color,cutout 'data_dir=my photos' width=32 pool="
    assert helpers.parse_settings(text) == dict(lr_g=0.003, flip=False, augment="color,cutout", data_dir="my photos", width=32, pool="")
    with pytest.raises(ValueError, match="'fast' is no setting; expected NAME=VALUE"):
        helpers.parse_settings("lr_g=0.003 fast")
