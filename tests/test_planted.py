"""Each mistake in section 10's table, planted: a check of the section that it names fails.

Where they were found, in the post's code (teodorToshkov/ViTGAN-pytorch 8dc48b2): no √2 and one
SLN, vitgan_generator.py 24, 49, 173-186; √D, after the softmax, no square, tie or minus,
multi_head.py 15-38; MLP thrown away, mixed reshape, vitgan_generator.py 187, 239-241; ω₀, 213,
228, 292, 305-323; no padding, GELU, vitgan_discriminator.py 18, 87; u, v and σ(W_init), utils.py
24-39; gradients of D, EMA, rescaling, main.py 417, 350-353, 495, 486-487. Section 11: positions,
vitgan_generator.py 403, 445; augmented images, three augmentations, vitgan_discriminator.py
113-115, 104. The authors' port (mlpc-ucsd/ViTGAN d57078e): λ, defaults/gan.gin 2-3; length,
c10_style64.gin 2-4; flips, datasets.py 58 and diffaug.py 88-99.
"""
import re

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import CODE, MARKDOWN, NOTEBOOK

ROWS = re.findall(r"^\| (.+?) \| .+? \| ([\d., ]+) \|$", MARKDOWN.split("\n## 10. ")[1], re.M)
TABLE = {mistake: sections.split(", ") for mistake, sections in ROWS}
NEEDED = {"7": ["2"], "8": ["2", "7"]}  # whose cells a section's cells need
SMALL_WEIGHTS = ("nn.init.uniform_(self.hidden.linear.weight,"
                 " -(6 / width)**0.5 / 30, (6 / width)**0.5 / 30)")

PLANTED = [  # words of the mistake, the section that catches it, pairs of right and wrong code
    ("without √2", "3.2", ("0.2) * math.sqrt(2)", "0.2)")),
    ("one SLN", "3.5", ("self.norm2 = SelfModulatedLayerNorm(width, w_dim)",
                        "self.norm2 = self.norm1")),
    ("√width for √d", "3.5", ("scale=q.shape[-1] ** -0.5", "scale=h.shape[-1] ** -0.5")),
    ("after the softmax", "3.5", ("torch.softmax(scale * q @ k.mT, -1)",
                                  "scale * torch.softmax(q @ k.mT, -1)")),
    ("result thrown away", "3.5", ("return h + self.mlp(self.norm2(h, w))",
                                   "self.mlp(self.norm2(h, w)); return h")),
    ("mixes channels", "3.8", (
        'rearrange(patches, "b (gh gw) (ph pw) c -> b c (gh ph) (gw pw)", gh=grid, ph=side)',
        "patches.reshape(len(patches), -1, grid * side, grid * side)")),
    ("ω₀", "3.8", ("torch.sin(self.hidden(E, y))", "torch.sin(30 * self.hidden(E, y))"),
     ("ModulatedLinear(width, 3, width)", f"ModulatedLinear(width, 3, width); {SMALL_WEIGHTS}")),
    ("no padding", "5.2", ("padding=self.overlap", "padding=0")),
    ("without square", "5.3", (
        "torch.softmax(norms - 2 * products, -1)",
        "torch.softmax(sign * torch.cdist(q, q) * q.shape[-1] ** -0.5, -1)")),
    ("minus", "5.3", ("def l2_attention(q, v, sign=-1", "def l2_attention(q, v, sign=1")),
    ("not tied", "5.5", ("self.out = (ISNLinear(width, width) for _ in range(3))",
                         "self.out, self.key = (ISNLinear(width, width) for _ in range(4))"),
     ("rearrange(l2_attention(q, v), ",
      "rearrange(torch.softmax(-torch.cdist(q, rearrange(self.key(h), 'b n (h d) -> b h n d',"
      " h=self.heads)).square() / math.sqrt(q.shape[-1]), -1) @ v, ")),
    ("not stored", "5.4", ("W.T @ self.u", "W.T @ torch.randn_like(self.u)")),
    ("taken late", "5.4", ("self.u = F.normalize(W @ self.v, dim=0)",
                           "self.u = F.normalize(W @ self.v, dim=0)\n                    "
                           "self.sigma_init = self.scale * self.u @ (W @ self.v)")),
    ("GELU", "5.5", ("return self.head(", "return (lambda h: F.gelu(self.head(h)))(")),
    ("gradients of D", "7", ("D.eval().requires_grad_(False)", "D.eval()")),
    ("exhausted iterator", "7", (
        "[*G.parameters()], 1 - decay",
        "[*G.__dict__.setdefault('once', G.parameters())]"
        " or [*average.parameters()], 1 - decay")),
    ("rescaled", "8", ("G(part, truncation_psi)",
                       "torch.stack([2 * (x - x.min()) / (x.max() - x.min()) - 1\n"
                       "                                  for x in G(part, truncation_psi)])")),
]

def names(*planted):
    """The notebook's names, and digits of 16 pixels, with wrong code planted in the definitions."""
    source = "\n\n".join(cell["text"] for cell in CODE if cell["defines"])
    for right, wrong in planted:
        assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times"
        source = source.replace(right, wrong)
    exec(source, space := {"__name__": "planted"})
    return space | dict(plt=plt, device=torch.device("cpu"), hardware="")

def run_checks(section, space):
    """Execute the code cells below a heading that are no definitions."""
    cells = [c["text"] for c in CODE if c["section"] == section and not c["defines"]]
    assert cells, f"section {section} has no check"
    for text in cells:
        exec(text, space)

@pytest.fixture(autouse=True)
def small_run_in_a_folder_of_its_own(tmp_path, monkeypatch):
    settings = "data_dir=digits image_size=16 profile=smoke total_images=64 precision=float32"
    monkeypatch.setenv("VITGAN_SETTINGS", settings)
    monkeypatch.setenv("VITGAN_RUNS", str(tmp_path))
    monkeypatch.chdir(NOTEBOOK.parent)
    yield
    plt.close("all")

SECTIONS = dict.fromkeys([*(section for _, section, *_ in PLANTED), "10", "12"])

@pytest.mark.parametrize("section", SECTIONS)
def test_checks_pass_without_mistakes_and_need_no_demonstration(section):
    space = names()
    for needed in [*NEEDED.get(section, []), section]:
        run_checks(needed, space)

CASES = [(row, section, pairs) for row, section, *pairs in PLANTED]

@pytest.mark.parametrize("row, section, planted", CASES, ids=[f"{r} {s}" for r, s, _ in CASES])
def test_check_catches(row, section, planted):
    assert [section in caught for mistake, caught in TABLE.items() if row in mistake] == [True]
    space = names(*planted)
    for needed in NEEDED.get(section, []):
        run_checks(needed, space)
    with pytest.raises(AssertionError):
        run_checks(section, space)

def test_every_row_is_planted_in_every_section_that_it_names():
    planted = {(row, section) for row, section, *_ in PLANTED}
    missing = [(mistake, section) for mistake, caught in TABLE.items() for section in caught
               if not any(row in mistake and section == place for row, place in planted)]
    assert len(TABLE) > 10 and missing == []

def test_solutions_are_right_and_other_answers_are_not(capsys):
    space, cells = names(), [cell["text"] for cell in CODE if cell["section"] == "12"]
    for text, solution in zip(cells, re.findall(r"python\n(def my_.*?)```", MARKDOWN, re.S),
                              strict=True):
        exec(text, space)
        exec(solution, space)
        exec(text.splitlines()[-1], space)
    space["check_exercise"]("zero", torch.zeros(3), torch.ones(3))
    told = re.findall(": (replace|right|not right)", capsys.readouterr().out)
    assert told == ["replace", "right"] * 3 + ["not right"]
