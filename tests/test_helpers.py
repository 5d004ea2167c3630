"""The rest of helpers.py: loading definitions, metrics, pictures."""

import json

import helpers
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image


def pictures(n, seed=0, size=8):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# --------------------------------------------------------------------------------------------------------- definitions


def write_notebook(path, *cells):
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": tags}} for source, tags in cells]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_only_tagged_cells_run_and_in_order(tmp_path):
    cells = (["a = 1\n", "b = 2"], ["definition"]), ("1 / 0", []), ("c = a + b", ["x", "definition"])
    module = helpers.load_definitions(write_notebook(tmp_path / "n.ipynb", *cells))
    assert (module.a, module.b, module.c) == (1, 2, 3)


def test_notebook_without_definitions(tmp_path):
    with pytest.raises(ValueError, match="n.ipynb has no cell tagged 'definition'"):
        helpers.load_definitions(write_notebook(tmp_path / "n.ipynb", ("a = 1", [])))


def test_tracebacks_show_the_line_of_the_cell(tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", ("def f():\n    return 1 / 0", ["definition"]))
    with pytest.raises(ZeroDivisionError) as caught:
        helpers.load_definitions(path).f()
    assert str(caught.traceback[-1].statement).strip() == "return 1 / 0"


# ------------------------------------------------------------------------------------------------------------- metrics


def test_distance_of_a_set_to_itself_is_zero_in_any_order():
    a = pictures(50)
    assert helpers.sliced_wasserstein(a, a[torch.randperm(50)]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shift", [5, 40])
def test_distance_of_a_shift_is_the_shift_for_flat_pictures(shift):
    """One random unit direction sees shift * sum(direction): on average over directions, squared, shift^2."""
    a = torch.full((20, 3, 8, 8), 100, dtype=torch.uint8)
    assert helpers.sliced_wasserstein(a, a + shift, projections=4096) == pytest.approx(shift, rel=0.05)


def test_distance_grows_with_difference_is_symmetric_and_uses_no_global_randomness():
    a, state = pictures(40), torch.get_rng_state()
    near, far = (a.float() * 0.9).to(torch.uint8), (a.float() * 0.3).to(torch.uint8)
    assert helpers.sliced_wasserstein(a, near) < helpers.sliced_wasserstein(a, far)
    assert helpers.sliced_wasserstein(a, far) == pytest.approx(helpers.sliced_wasserstein(far, a))
    assert torch.equal(state, torch.get_rng_state())


def test_distance_sees_collapse():
    a = pictures(64)
    collapsed, other = a[:1].expand(64, -1, -1, -1), pictures(64, seed=1)
    assert helpers.sliced_wasserstein(a, collapsed) > 3 * helpers.sliced_wasserstein(a, other)


def test_nearest_finds_the_copy_and_the_distance_per_pixel():
    pool = pictures(30)
    indices, distances = helpers.nearest(pool[[7, 3]], pool, batch=1)
    assert indices.tolist() == [7, 3] and distances.max() < 0.5  # cdist in float32 cancels
    flat = torch.full((2, 3, 8, 8), 10, dtype=torch.uint8)
    assert helpers.nearest(flat + 4, flat)[1].tolist() == pytest.approx([4, 4], abs=0.1)


def test_nearest_can_leave_out_the_picture_itself():
    pool = pictures(30)
    pool[9] = pool[4]
    pool[9, 0, 0, 0] ^= 1
    indices, distances = helpers.nearest(pool[[4, 7]], pool, skip_self=True)
    assert indices[0] == 9 and indices[1] != 7
    assert distances[0].item() == pytest.approx((3 * 8 * 8) ** -0.5) and distances[1] > 10


def test_fixed_subset_is_fixed_shuffled_and_without_repeats():
    a = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    subset = helpers.fixed_subset(a, 10).flatten().tolist()
    torch.manual_seed(5)
    assert subset == helpers.fixed_subset(a, 10).flatten().tolist() != sorted(subset) and len(set(subset)) == 10
    assert sorted(helpers.fixed_subset(a, 1000).flatten().tolist()) == list(range(100))


def test_fidelity_asks_for_the_published_protocol(vitgan, config, monkeypatch):
    """torch-fidelity's own numbers need weights from the network; here only what it is given."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    asked = {}
    monkeypatch.setattr(torch_fidelity, "calculate_metrics", lambda **given: asked.update(given) or {"fid": 7})
    real, G = pictures(5), vitgan.Generator(config).eval()
    found = helpers.fidelity(G, config.latent_dim, real, n=50)
    assert found == {"fid": 7, "fid_samples": 50, "fid_real": 5}
    assert asked["input1_model_num_samples"] == 50 and asked["cache"] is False and asked["cuda"] is False
    assert asked["kid_subset_size"] <= 5 and asked["fid"] and asked["isc"] and asked["kid"]
    z = vitgan.fixed_noise(config, 3)
    assert torch.equal(asked["input1"](z), vitgan.sample(G, z))
    assert torch.equal(torch.stack(list(asked["input2"][i] for i in range(len(asked["input2"])))), real)


def test_spread_is_zero_for_one_picture_repeated_and_1_for_black_and_white():
    assert helpers.spread(pictures(1).expand(9, -1, -1, -1)) == 0
    two = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8).repeat(100, 1, 1, 1)
    assert helpers.spread(two) == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_to_uint8_inverts_what_training_does_and_clamps():
    a = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(helpers.to_uint8(a.float() / 127.5 - 1), a)
    assert helpers.to_uint8(torch.tensor([-7.0, 7.0, 0.0])).tolist() == [0, 255, 128]


def test_grid_has_a_white_pixel_between():
    picture = helpers.grid(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), columns=3)
    assert picture.shape == (2 * 5 + 1, 3 * 5 + 1, 3) and picture.dtype == np.uint8
    assert (picture[::5] == 255).all() and (picture[1:5, 1:5] == 0).all()


def test_real_pictures_are_shown_as_they_are_unless_hidden(monkeypatch):
    a = pictures(2)
    monkeypatch.delenv("VITGAN_HIDE_REAL", raising=False)
    assert torch.equal(helpers.shareable(a), a)
    monkeypatch.setenv("VITGAN_HIDE_REAL", "1")
    cells = helpers.shareable(a, cell=4).unfold(2, 4, 4).unfold(3, 4, 4)
    assert (cells == cells[..., :1, :1]).all()
    assert cells[0, 0, 0, 0, 0, 0].item() == pytest.approx(a[0, 0, :4, :4].float().mean().item(), abs=0.51)


def test_save_png_keeps_the_pixels_and_makes_them_3_wide(tmp_path):
    a = pictures(4)
    helpers.save_png(tmp_path / "new" / "a.png", a, columns=2)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture)[1::3, 1::3], helpers.grid(a, columns=2))


def test_show_images_draws_every_image_on_the_axes_given():
    import matplotlib.pyplot as plt

    ax = helpers.show_images(pictures(4), "four", columns=2, ax=plt.figure().gca())
    assert ax.get_title() == "four" and ax.images[0].get_array().shape == (19, 19, 3)
    plt.close("all")


# -------------------------------------------------------------------------------------------- from a terminal


def test_notebook_runs_from_a_terminal_live_and_is_kept_up_to_the_error(tmp_path, capfd):
    nbformat = pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(source) for source in ("import os\nprint('hel' + 'lo')", "1 / 0", "print('never')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        helpers.run_notebook(tmp_path / "n.ipynb", tmp_path / "runs" / "out.ipynb")
    shown = capfd.readouterr().out
    assert "hello\n" in shown and "[1/3] print('hel' + 'lo')" in shown and "never" not in shown
    executed = nbformat.read(tmp_path / "runs" / "out.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "hello\n" and executed.cells[1].outputs[0].ename == "ZeroDivisionError"


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("cuda, mps, kind", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_fastest_device_is_picked(monkeypatch, cuda, mps, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert helpers.pick_device().type == kind


# ------------------------------------------------------------------------------------------------------------ sampling


def test_sampling_in_parts_equals_sampling_at_once(vitgan, config):
    G, z = vitgan.Generator(config).eval(), vitgan.fixed_noise(config, 10)
    whole, parts = (vitgan.sample(G, z, batch=b).int() for b in (256, 3))
    assert whole.shape == (10, 3, 8, 8) and (whole - parts).abs().max() <= 1  # rounding of a value near .5
    assert not G.training and whole.unique().numel() > 50


def test_fixed_noise_is_fixed_and_independent_of_training(vitgan, config):
    first, state = vitgan.fixed_noise(config, 8), torch.get_rng_state()
    torch.randn(3)
    assert torch.equal(first, vitgan.fixed_noise(config, 8)) and first.shape == (8, config.latent_dim)
    assert not torch.equal(first, vitgan.fixed_noise(config, 8, seed=2)) and len(state)


def test_a_shown_figure_has_its_caption_as_alternative_text_and_is_closed(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda thing, **kwargs: shown.append((thing, kwargs)))
    helpers.draw_networks()
    helpers.show("two rows of boxes")
    (figure, kwargs), (caption, _) = shown
    assert kwargs["metadata"] == {"image/png": {"alt": "two rows of boxes"}} and caption.data == "*two rows of boxes*"
    assert sum(text.get_text() != "" for text in figure.axes[0].texts) > 18
    assert figure.number not in plt.get_fignums()
