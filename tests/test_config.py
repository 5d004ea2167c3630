"""Settings: every wrong value raises one sentence that names the field, its value and what is allowed."""

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import helpers

WRONG = [  # field, value, a word of what is allowed
    ("image_size", 0, "1 or more"), ("image_size", -32, "not negative"),
    ("patch_size", 3, "divisor of image_size=8"), ("patch_size", 0, "1 or more"), ("patch_size", 16, "divisor"),
    ("width", 0, "1 or more"), ("width", 16.0, "int"),
    ("heads", 3, "divisor of width=16"), ("heads", 0, "1 or more"), ("heads", "two", "int"),
    ("blocks", 0, "1 or more"), ("mlp_ratio", 0, "1 or more"), ("latent_dim", 0, "1 or more"),
    ("mapping_layers", -1, "not negative"), ("siren_hidden", 0, "1 or more"), ("demodulate", 1, "bool"),
    ("positions", "learned", "'linear' or 'free'"), ("pool", "max", "'class' or 'mean'"),
    ("overlap", -1, "not negative"), ("overlap", 9, "0 to image_size=8"),
    ("l2_sign", 0, "-1 or 1"), ("l2_sign", 2, "-1 or 1"),
    ("augment", "colour", "translation"), ("augment", "color cutout", "comma"),
    ("augment_p", 1.5, "0 to 1"), ("augment_p", -0.1, "not negative"), ("bcr_real", -10.0, "not negative"),
    ("bcr_fake", float("nan"), "finite"), ("r1", float("inf"), "finite"), ("lecam", None, "float"),
    ("batch_size", 0, "1 or more"), ("batch_size", True, "int"),
    ("lr_g", -1.0, "not negative"), ("lr_d", -0.002, "not negative"),
    ("ema_half_life", 0, "1 or more"), ("total_images", -1, "not negative"), ("max_minutes", -1.0, "not negative"),
    ("log_images", 0, "1 or more"), ("precision", "float8", "'float16'"),
    ("data_dir", None, "str"), ("seed", -1, "not negative"), ("no_such_field", 1, "batch_size")]


@pytest.mark.parametrize("field, value, allowed", WRONG)
def test_wrong_value_names_field_value_and_what_is_allowed(vitgan, make_config, field, value, allowed):
    with pytest.raises(vitgan.ConfigError) as caught:
        make_config(**{field: value})
    named, _, rule = str(caught.value).partition("allowed: ")
    assert f"{field}={value!r}" in named and allowed in rule
    assert rule.endswith(".") and "\n" not in rule


def test_unknown_profile(vitgan):
    with pytest.raises(vitgan.ConfigError, match=r"profile='gpu' is unknown; allowed: smoke, cpu, colab, paper"):
        vitgan.Config.profile("gpu")


def test_config_error_is_a_value_error(vitgan):
    assert issubclass(vitgan.ConfigError, ValueError)


@pytest.mark.parametrize("name", ["smoke", "cpu", "colab", "paper"])
def test_profiles_build_and_can_be_overridden(vitgan, name):
    c = vitgan.Config.profile(name)
    assert vitgan.Config.profile(name, seed=7) == dataclasses.replace(c, seed=7) != c


def test_paper_profile_has_the_papers_numbers(vitgan):
    c = vitgan.Config.profile("paper")
    assert (c.image_size, c.patch_size, c.tokens, c.width, c.blocks, c.heads) == (32, 4, 64, 384, 4, 6)
    assert (c.overlap, c.width * c.mlp_ratio, c.batch_size, c.lr_g, c.lr_d) == (2, 1536, 128, 0.002, 0.002)
    assert (c.bcr_real, c.bcr_fake, c.augment_p, c.r1, c.lecam) == (10, 10, 0.8, 0, 0)
    assert set(c.augment.split(",")) == {"color", "translation", "cutout", "scaling"}


def test_settings_cannot_change_after_the_check(vitgan, config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 17


def test_replacing_a_value_checks_again(vitgan, config):
    with pytest.raises(vitgan.ConfigError, match="heads=5"):
        dataclasses.replace(config, heads=5)


def test_whole_numbers_do_for_rates(make_config):
    assert make_config(r1=1, max_minutes=5).r1 == 1


NUMBERS = st.integers(-1, 12)
WILD = dict(
    image_size=NUMBERS, patch_size=NUMBERS, width=NUMBERS, heads=NUMBERS, latent_dim=NUMBERS, overlap=NUMBERS,
    blocks=st.integers(-1, 2), mlp_ratio=st.integers(-1, 3), mapping_layers=st.integers(-1, 3),
    siren_hidden=st.integers(-1, 3), whole_image=st.booleans(), l2_sign=st.integers(-2, 2),
    positions=st.sampled_from(["linear", "free", "", "sine"]), pool=st.sampled_from(["class", "mean", "max"]),
    augment=st.sampled_from(["", "color", "cutout,scaling", "translation,", "all"]), augment_p=st.floats(),
    batch_size=st.integers(-1, 3), bcr_real=st.floats(-1, 20), bcr_fake=st.floats(-1, 20))
UP_TO_3_WILD_FIELDS = st.lists(st.sampled_from(sorted(WILD)), unique=True, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: WILD[name] for name in names}))


@settings(max_examples=150)
@example(dict(mapping_layers=0))  # then w is z, and must be as wide
@example(dict(image_size=1, patch_size=1, overlap=1))
@given(UP_TO_3_WILD_FIELDS)
def test_settings_either_work_or_are_refused(vitgan, make_config, options):
    try:
        c = make_config(**options)
    except vitgan.ConfigError as error:
        assert any(f"{field}=" in str(error) for field in [*options, "patch_size", "heads", "overlap"])
        return
    G, D = vitgan.Generator(c), vitgan.Discriminator(c)
    fake = G(torch.randn(c.batch_size, c.latent_dim))
    real = torch.rand(c.batch_size, 3, c.image_size, c.image_size)
    loss, _ = vitgan.discriminator_loss(D, real, fake, c)
    assert fake.shape == real.shape and loss.isfinite()


@pytest.mark.parametrize("n, name, mirrorable, changes", [
    (20_000, "cats", True, {}),
    (20_000, "road signs", False, {"flip": False}),
    (9_999, "cats", True, {"logistic_on": "augmented", "augment": "translation,cutout"}),
    (1_797, "digits (scikit-learn)", False,
     {"flip": False, "logistic_on": "augmented", "augment": "translation,cutout", "feature_step": 1.5, "lr_g": 0.003,
      "lr_d": 0.003})])
def test_settings_follow_the_data_and_nothing_else_changes(vitgan, n, name, mirrorable, changes):
    config = vitgan.Config.profile("cpu")
    data = helpers.Images(torch.zeros(n, 1, dtype=torch.uint8), name, mirrorable)
    assert vitgan.adapt(config, data) == dataclasses.replace(config, **changes)
