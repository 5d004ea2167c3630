"""Each mistake in section 10's table, planted: a check of the section that it names fails.

Where they were found, in the post's code (teodorToshkov/ViTGAN-pytorch 8dc48b2): no √2 and one
SLN, vitgan_generator.py 24, 49, 173-186; √D, after the softmax, no square, tie or minus,
multi_head.py 15-38; MLP thrown away, mixed reshape, vitgan_generator.py 187, 239-241; ω₀, 213,
228, 292, 305-323; no padding, GELU, vitgan_discriminator.py 18, 87; u, v and σ(W_init), utils.py
24-39; gradients of D, EMA, rescaling, main.py 417, 350-353, 495, 486-487. Section 11: positions,
vitgan_generator.py 403, 445; augmented images, three augmentations, vitgan_discriminator.py
113-115, 104; demodulation, ViTGAN_pytorch.ipynb 138. The authors' port (mlpc-ucsd/ViTGAN d57078e):
λ, defaults/gan.gin 2-3; two augmented views, training/gan/aug_both.py 14 and penalty.py 50-58;
demodulation, models/gan/stylegan2/vit_cips.py 29; convolutional patches, README.md 20; length,
c10_style64.gin 2-4; flips, datasets.py 58 and diffaug.py 88-99.
"""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import CODE, MARKDOWN, NOTEBOOK

ROWS = re.findall(r"^\| (.+?) \| .+? \| ([\d., ]+) \|$", MARKDOWN.split("\n## 10. ")[1], re.M)
TABLE = {mistake: sections.split(", ") for mistake, sections in ROWS}
NEEDED = {"7": ["1", "2"], "8": ["1", "2", "7"]}  # whose cells a section's cells need
SMALL_WEIGHTS = (
    "nn.init.uniform_(self.hidden.linear.weight, -(6 / width)**0.5 / 30, (6 / width)**0.5 / 30)"
)

PLANTED = [  # words of the mistake, the section that catches it, pairs of right and wrong code
    ("without √2", "3.2", ("0.2) * math.sqrt(2)", "0.2)")),
    (
        "one SLN",
        "3.5",
        ("self.norm2 = SelfModulatedLayerNorm(width, w_dim)", "self.norm2 = self.norm1"),
    ),
    (
        "√width for √d",
        "3.5",
        ("self.softmax(q.shape[-1] ** -0.5", "self.softmax(h.shape[-1] ** -0.5"),
    ),
    (
        "after the softmax",
        "3.5",
        (
            "self.softmax(q.shape[-1] ** -0.5 * q @ k.mT)",
            "q.shape[-1] ** -0.5 * self.softmax(q @ k.mT)",
        ),
    ),
    (
        "result thrown away",
        "3.5",
        ("return h + self.mlp(self.norm2(h, w))", "self.mlp(self.norm2(h, w)); return h"),
    ),
    (
        "mixes channels",
        "3.8",
        ("weighted.permute(0, 3, 2, 1).flatten(1, 2)", "weighted.reshape(len(patches), -1, N)"),
    ),
    (
        "ω₀",
        "3.8",
        ("torch.sin(self.hidden(E, y))", "torch.sin(30 * self.hidden(E, y))"),
        ("ModulatedLinear(width, 3, width)", f"ModulatedLinear(width, 3, width); {SMALL_WEIGHTS}"),
    ),
    ("no padding", "5.2", ("padding=self.overlap", "padding=0")),
    (
        "without square",
        "5.3",
        ("return norms - 2 * products", "return sign * torch.cdist(q, q) * q.shape[-1] ** -0.5"),
    ),
    ("minus", "5.3", ("def l2_scores(q, sign=-1", "def l2_scores(q, sign=1")),
    (
        "not tied",
        "5.5",
        (
            "self.value, self.out = ISNLinear(width, width), ISNLinear(width, width)",
            "self.value, self.out, self.key = (ISNLinear(width, width) for _ in 'abc')",
        ),
        (
            "self.softmax(l2_scores(q))",
            "self.softmax(-torch.cdist(q, rearrange(self.key(h), 'b n (h d) -> b h n d',"
            " h=self.heads))"
            ".square() / math.sqrt(q.shape[-1]))",
        ),
    ),
    ("not stored", "5.4", ("W.T @ self.u", "W.T @ torch.randn_like(self.u)")),
    (
        "taken late",
        "5.4",
        (
            "self.u = F.normalize(W @ self.v, dim=0)",
            "self.u = F.normalize(W @ self.v, dim=0)\n                    "
            "self.sigma_init = self.scale * self.u @ (W @ self.v)",
        ),
    ),
    ("GELU", "5.5", ("return self.head(", "return (lambda h: F.gelu(self.head(h)))(")),
    ("gradients of D", "7", ("D.eval().requires_grad_(False)", "D.eval()")),
    (
        "exhausted iterator",
        "7",
        (
            "zip(average.parameters(), G.parameters(), strict=True)",
            "zip(average.parameters(), G.__dict__.setdefault('once', G.parameters()))",
        ),
    ),
    (
        "rescaled",
        "8",
        (
            "G(part, truncation_psi)",
            "torch.stack([2 * (x - x.min()) / (x.max() - x.min()) - 1\n"
            "                                  for x in G(part, truncation_psi)])",
        ),
    ),
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


SECTIONS = dict.fromkeys([*(section for _, section, *_ in PLANTED), "12"])


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
    missing = [
        (mistake, section)
        for mistake, caught in TABLE.items()
        for section in caught
        if not any(row in mistake and section == place for row, place in planted)
    ]
    assert len(TABLE) > 10 and missing == []


def test_exercises_know_right_answers_from_wrong_ones_and_from_none(capsys):
    """Also the one of section 12 that has to be repaired: its code comes wrong."""
    cells = [cell["text"] for cell in CODE if cell["section"] == "12"]
    answers = {
        "windows_with_a_pixel = None": "windows_with_a_pixel = 4",
        "patches_at_a_pixel = None": "patches_at_a_pixel = (1, 4)",
        "return -F.softplus(logits).mean()": "return F.softplus(-logits).mean()",
        '"Ada": None': '"Ada": "square"',
        '"Ben": None': '"Ben": "after"',
        '"Cleo": None': '"Cleo": "minus"',
    }
    for changes in ({}, answers):
        source = "\n".join(cells)
        for old, new in changes.items():
            assert source.count(old) == 1
            source = source.replace(old, new)
        exec(source, names())
    told = re.findall(": (write|right|not right)", capsys.readouterr().out)
    assert told == ["write"] * 2 + ["not right"] + ["write"] * 3 + ["right"] * 6
