"""Each mistake in section 11's table, planted in the definitions: a check of the section that the table names fails."""

import json
import re
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import NOTEBOOK

import helpers

CELLS, heading = [], ""  # (section, kind and tags, source) of each cell; of headings in one cell, the last counts
for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        heading = ([heading] + re.findall(r"^##+ (\S+?)\.? ", text, re.M))[-1]
    CELLS.append((heading, [cell["cell_type"], *cell["metadata"].get("tags", [])], text))
TABLE = dict(re.findall(r"^\| (.+?) \|.*\|(.+?\]\(#.+?)\|$", "\n".join(t for s, _, t in CELLS if s == "11"), re.M))
BEFORE = {"6.2": ["6.1"], "9": ["8"]}  # whose cells a section's cells need
SMALL_WEIGHTS = "nn.init.uniform_(self.hidden[0].linear.weight, -(6 / width)**0.5 / 30, (6 / width)**0.5 / 30)"

PLANTED = [  # words of the mistake in the table, the section that catches it, and pairs of right and wrong code
    ("without √2", "4.2", ("0.2) * math.sqrt(2)", "0.2)")),
    ("one SLN", "4.5", ("self.norm2 = SelfModulatedLayerNorm(width, w_dim)", "self.norm2 = self.norm1")),
    ("√D for √d", "4.5", ("scale=q.shape[-1] ** -0.5", "scale=h.shape[-1] ** -0.5")),
    ("after the softmax", "4.5", ("torch.softmax(scale * q @ k.mT, -1)", "scale * torch.softmax(q @ k.mT, -1)")),
    ("result thrown away", "4.5", ("return h + self.mlp(self.norm2(h, w))", "self.mlp(self.norm2(h, w)); return h")),
    ("mixes channels", "4.8", ('rearrange(patches, "b (gh gw) (ph pw) c -> b c (gh ph) (gw pw)", gh=grid, ph=side)',
                               "patches.reshape(len(patches), -1, grid * side, grid * side)")),
    ("ω₀", "4.8", ("torch.sin(layer(x, y))", "torch.sin(30 * layer(x, y))"),
     ("ModulatedLinear(width, 3, width)", f"ModulatedLinear(width, 3, width); {SMALL_WEIGHTS}")),
    ("no padding", "6.2", ("padding=self.overlap", "padding=0")),
    ("without square", "6.3", ("torch.softmax(norms - 2 * products, -1)",
                               "torch.softmax(sign * torch.cdist(q, q) * q.shape[-1] ** -exponent, -1)")),
    ("minus", "6.3", ("def l2_attention(q, v, sign=-1", "def l2_attention(q, v, sign=1")),
    (", tie", "6.5", ("self.out = (ISNLinear(width, width) for _ in range(3))",
                    "self.out, self.key = (ISNLinear(width, width) for _ in range(4))"),
     ("l2_attention(q, v, exponent=self.exponent)",
      "torch.softmax(-torch.cdist(q, self.key(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)).square(), -1) @ v")),
    ("not stored", "6.4", ("W.T @ self.u", "W.T @ torch.randn_like(self.u)")),
    ("taken late", "6.4", ("self.u = F.normalize(W @ self.v, dim=0)", "self.u = F.normalize(W @ self.v, dim=0)\n"
                           "                    self.sigma_init = self.scale * self.u @ (W @ self.v)")),
    ("GELU", "6.5", ("return self.head(", "return (lambda h: F.gelu(self.head(h)))(")),
    ("gradients of D", "7", ("[real, fake.detach()]", "[real, fake]")),
    ("gradients of D", "8", ("D.eval().requires_grad_(False)", "D.eval()")),
    ("exhausted iterator", "8", ("[*G.parameters()], 1 - decay", "[*state.__dict__.setdefault('once', G.parameters())]"
                                 " or [*state.G_ema.parameters()], 1 - decay")),
    ("never sampled", "8", ("sample(state.G_ema, fixed_noise(", "sample(state.G, fixed_noise(")),
    ("rescaled", "9", ("G(part, truncation_psi)", "torch.stack([2 * (x - x.min()) / (x.max() - x.min()) - 1\n"
                       "                                  for x in G(part, truncation_psi)])")),
]


def names(*planted):
    """The notebook's names before section 4, in the smoke profile, with wrong code planted in the definitions."""
    source = "\n\n".join(text for _, kind, text in CELLS if "definition" in kind)
    for right, wrong in planted:
        assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times"
        source = source.replace(right, wrong)
    exec(source, space := {"__name__": "planted"})
    data = helpers.load_images(16, "digits")
    return space | dict(plt=plt, sys=sys, device=torch.device("cpu"), dtype=torch.float32, hardware="", drive=False, profile="smoke",
                        config=space["Config"].profile("smoke", data, total_images=64), data=data, images=data.pixels)


def run_checks(section, space):
    """Execute the code cells below a heading that are no definitions."""
    for place, kind, text in CELLS:
        if (place + ".").startswith(section + ".") and "code" in kind and "definition" not in kind:
            exec(text, space)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("VITGAN_RUNS", str(tmp_path))
    monkeypatch.chdir(NOTEBOOK.parent)


@pytest.mark.parametrize("section", dict.fromkeys(section for _, section, *_ in PLANTED))
def test_checks_pass_without_mistakes(section):
    space = names()
    for needed in [*BEFORE.get(section, []), section]:
        run_checks(needed, space)


@pytest.mark.parametrize("row, section, planted", [(row, section, pairs) for row, section, *pairs in PLANTED])
def test_check_catches(row, section, planted):
    assert [f"[{section}](#" in caught for mistake, caught in TABLE.items() if row in mistake] == [True]
    space = names(*planted)
    for needed in BEFORE.get(section, []):
        run_checks(needed, space)
    with pytest.raises(AssertionError):
        run_checks(section, space)


def test_every_row_is_planted():
    assert TABLE and all(any(row in mistake for row, *_ in PLANTED) for mistake in TABLE)
