"""What a newcomer changes, made on a copy of the notebook, does what one expects."""

import json
import shutil
import subprocess
import sys
import traceback

import pytest
import torch
from conftest import CODE, NOTEBOOK, ROOT, TINY, run, tiny_images
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import helpers

DATA = helpers.Images(tiny_images(), "tiny", None, "tiny")
RELATIVISTIC = """
def generator_loss(D, real, fake, augment):
    both = diff_augment(torch.cat([real, fake]), augment)
    logits_real, logits_fake = D(both).float().chunk(2)
    loss = F.softplus(logits_real - logits_fake).mean()
    return loss, {"g_loss": loss.detach()}
"""


@pytest.fixture
def edited(tmp_path):
    """A function: the path of a copy of the notebook with pairs (old, new), and a new cell."""

    def edit(*pairs, cell="", name="mine.ipynb"):
        notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
        cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        for old, new in pairs:
            found = [c for c in cells if old in "".join(c["source"])]
            assert len(found) == 1, f"{len(found)} cells have {old!r}"
            found[0]["source"] = "".join(found[0]["source"]).replace(old, new)
        if cell:
            before = next(c for c in cells if "class Config" in "".join(c["source"]))
            new = {"cell_type": "code", "metadata": {}, "source": cell}
            notebook["cells"].insert(notebook["cells"].index(before), new)
        (tmp_path / name).write_text(json.dumps(notebook), encoding="utf-8")
        return tmp_path / name

    return edit


def train(notebook, root, **settings):
    """Train as the notebook's last cell of section 7 does: (state, folder)."""
    vitgan = helpers.load_definitions(notebook)
    profile, config = vitgan.configure(DATA, torch.device("cpu"), "smoke", **TINY | settings)
    folder = helpers.run_folder(root, profile, DATA, config, vitgan.training_code())
    return vitgan.train(config, DATA.pixels, folder, log_steps=1), folder


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_another_loss_trains_anew_and_says_what_changed(edited, tmp_path, capsys, loss):
    old, hinge = "F.softplus(-D(diff_augment(fake, augment)).float())", "-D(fake).float()"
    changed = edited((old, hinge)) if loss == "hinge" else edited(cell=RELATIVISTIC)
    first, folder = train(NOTEBOOK, tmp_path)
    capsys.readouterr()
    second, other = train(changed, tmp_path)
    said = capsys.readouterr().out
    assert f"The code has changed since {folder} was trained: generator_loss. " in said
    assert f"run_dir={folder} goes on" in said and other == folder.with_name(folder.name + "-2")
    assert second.images_seen == 24 and len(second.history) == 6
    assert second.history[-1]["g_loss"] != first.history[-1]["g_loss"]
    assert train(changed, tmp_path)[1] == other and train(NOTEBOOK, tmp_path)[1] == folder
    assert f"{other} has seen 24 images; it is finished." in capsys.readouterr().out


def test_what_does_not_train_starts_nothing_anew(edited, tmp_path):
    changed = edited(
        ("Update D, then G on the same fakes", "Another docstring"),
        (
            "    real = sample_real(images, n, c.flip)",
            "    real = (sample_real(images,n,c.flip)) # r",
        ),
        ('"swd": sliced_wasserstein(samples, real)}', '"mean": samples.float().mean()}'),
        (
            "def compare_by_eye(generators, images, n=40)",
            "def compare_by_eye(generators, images, n=8)",
        ),
        cell="n = width = 3\n%matplotlib inline\n!true",
    )
    assert train(NOTEBOOK, tmp_path)[1] == train(changed, tmp_path)[1]


def test_a_kernel_hashes_what_it_executes_as_the_command_does(vitgan):
    cells = [cell["text"] for cell in CODE if cell["defines"]]
    cells += ["n = width = 3\nprint(json.dumps(training_code()))"]
    cells += [RELATIVISTIC, "MappingNetwork.forward = lambda self, z: z"]
    cells += ["print(json.dumps(training_code()))"]
    notebook = new_notebook(cells=[new_code_cell(text) for text in cells])
    NotebookClient(notebook, timeout=100).execute(cwd=str(ROOT))
    before, after = (
        json.loads(output["text"])
        for cell in notebook.cells
        for output in cell.outputs
        if output.get("name") == "stdout"
    )
    assert before == vitgan.training_code()
    assert {n for n in after if after[n] != before.get(n)} == {"MappingNetwork", "generator_loss"}


def test_attention_with_a_new_parameter_trains_and_the_shipped_weights_are_a_sentence(
    edited, tmp_path
):
    scores, own = "self.softmax(q.shape[-1] ** -0.5 *", "self.softmax(self.gain *"
    line = "        self.qkv = EqualizedLinear(width, 3 * width)\n"
    gain = "        self.gain = nn.Parameter(torch.ones(heads, 1, 1))\n"
    changed = edited((scores, own), (line, line + gain))
    assert train(changed, tmp_path)[0].images_seen == 24
    vitgan = sys.modules["vitgan"]
    with pytest.raises(
        ValueError, match=r"does not fit this G_ema: blocks\.0\.attention\.gain and 1 more"
    ):
        vitgan.load_generator(ROOT / "assets" / "vitgan-32.safetensors")


def test_the_shipped_weights_know_the_code_of_this_generator(vitgan, edited):
    """If this fails after a change of G that keeps its function, load and save them once more."""
    card = vitgan.load_generator(ROOT / "assets" / "vitgan-32.safetensors")[2]
    assert card["code"] == helpers.code_of(vitgan.Generator)
    other = helpers.load_definitions(edited(("nn.GELU()", "nn.SiLU()")))
    changed = dict(card["code"].items() ^ helpers.code_of(other.Generator).items())
    assert [*changed] == ["mlp"]


def test_a_class_in_a_cell_of_its_own_with_a_test_line_below(edited, tmp_path, capsys):
    cell = """import math

RATE = 2

class MySiLU(nn.Module):
    def forward(self, x):
        if x.shape[0] == 0:
            raise RuntimeError("empty")
        return x * torch.sigmoid(RATE * x)

print("expensive", MySiLU()(torch.ones(1)))
"""
    changed = edited(("nn.GELU()", "MySiLU()"), cell=cell)
    state, _ = train(changed, tmp_path)
    assert "expensive" not in capsys.readouterr().out and "MySiLU" in str(state.G)
    vitgan = sys.modules["vitgan"]
    assert {"MySiLU", "RATE"} <= vitgan.training_code().keys()
    for thing in (vitgan.MySiLU, vitgan.Generator, vitgan.train):
        source = helpers.inspect.getsource(thing)
        assert source.split("(")[0].split()[-1] == thing.__name__
        assert "\n\n\n" not in source.rstrip()
    with pytest.raises(RuntimeError) as caught:
        vitgan.MySiLU()(torch.ones(0))
    assert caught.traceback[-1].lineno + 1 == 8  # of the cell
    lines = "".join(traceback.format_exception(caught.value))
    assert "mine.ipynb, cell " in lines and 'raise RuntimeError("empty")' in lines


def test_a_schedule_goes_on_where_it_was(edited, tmp_path):
    start, step = "        if c.compile:\n", "    scaler.update()\n"
    own_start = """        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt_G, 0.5)
        self.slow, self.sums = copy.deepcopy(self.G), torch.zeros(2)
"""
    own_step = "    state.schedule.step()\n    state.sums += 1\n"
    changed = edited((start, own_start + start), (step, step + own_step))
    whole, _ = train(changed, tmp_path / "whole")
    train(changed, tmp_path / "parts", total_images=12)
    parts, _ = train(changed, tmp_path / "parts")
    assert parts.schedule.last_epoch == 6 and parts.sums.tolist() == [6, 6]
    assert parts.opt_G.param_groups[0]["lr"] == whole.opt_G.param_groups[0]["lr"]
    for name in ("G", "D", "G_ema", "slow", "opt_G", "schedule"):
        a, b = (getattr(state, name).state_dict() for state in (parts, whole))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_typo_in_ones_own_score_shows_its_traceback_and_loses_no_step(edited, tmp_path):
    shutil.copy(ROOT / "helpers.py", tmp_path)
    score = '{"swd": sliced_wasserstein(samples, real)}'
    edited((score, '{"mine": sampels.float().mean()}'), name=NOTEBOOK.name)
    settings = "profile=smoke data_dir=digits image_size=16 total_images"
    script = f"VITGAN_RUNS=runs {sys.executable} helpers.py {settings}="
    command = ["bash", "-c", script + "32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "NameError: name 'sampels' is not defined" in done.stderr
    assert f"{NOTEBOOK.name}, cell" in done.stderr and "sampels.float().mean()" in done.stderr
    (saved,) = (tmp_path / "runs").glob("*/checkpoint.pt")
    edited(name=NOTEBOOK.name)
    out, _ = run("bash", "-c", script + "48", folder=tmp_path)
    assert f"{saved.parent.relative_to(tmp_path)} has seen 32 images; going on from there." in out
