"""What a reader meets: links, equations, pictures, exercises, and numbers that are those which were measured."""

import hashlib
import json
import re

import pytest
from conftest import NOTEBOOK, ROOT
from experiment import evidence

CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
TEXTS = ["".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^(#{1,6}) +(.*)$", re.MULTILINE)
COMMANDS = set(r"""
\, \; \! \| \{ \} \\ \mathcal \mathbb \mathrm \text \sqrt \frac \tfrac \sum \max \exp \log \sin \circ \dots \cdot \odot \top \in \infty \quad \qquad \left
\right \big \bigl \bigr \Big \bar \hat \tilde \widetilde \overline \lVert \rVert \lambda \gamma \beta \sigma \mu \omega \varphi \psi \phi \theta \zeta \epsilon \varepsilon
\approx \sim \le \ge \to \leftarrow \times \ln
""".split())


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def headings(texts):
    return [match for text in texts for match in HEADING.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))]


def links(text):
    """Targets of Markdown links and pictures, one pair of brackets within them allowed."""
    return re.findall(r"\]\(((?:[^()\s]|\([^()\s]*\))+)\)", without_code(text))


def test_links_within_the_notebook_meet_a_heading():
    anchors = {"#" + title.strip().replace(" ", "-") for _, title in headings(TEXTS)}
    inner = [link for text in TEXTS for link in links(text) if link.startswith("#")]
    assert len(inner) > 20 and [link for link in inner if link not in anchors] == []


@pytest.mark.parametrize("texts", [TEXTS, [README]], ids=["notebook", "README"])
def test_links_to_files_meet_one_and_others_are_https(texts):
    outer = [link.split("#")[0] for text in texts for link in links(text) if not link.startswith("#")]
    assert len(outer) > 3
    assert [link for link in outer if not link.startswith("https://") and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("texts", [TEXTS, [README]], ids=["notebook", "README"])
def test_headings_are_in_order_and_unique(texts):
    found = headings(texts)
    levels = [len(marks) for marks, _ in found]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    assert len({title for _, title in found}) == len(found)


def test_equations_are_closed_and_use_known_commands():
    formulas = []
    for text in map(without_code, TEXTS):
        blocks = re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)
        rest = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
        assert rest.count("$") % 2 == 0, rest
        formulas += blocks + re.findall(r"\$(.+?)\$", rest, re.DOTALL)
    assert len(formulas) > 60
    for formula in formulas:
        plain = formula.replace(r"\{", "").replace(r"\}", "")
        assert plain.count("{") == plain.count("}"), formula
        assert len(re.findall(r"\\left(?![a-z])", formula)) == len(re.findall(r"\\right(?![a-z])", formula)), formula
        assert set(re.findall(r"\\(?:[A-Za-z]+|.)", formula)) <= COMMANDS | {"\\ "}, formula


def test_figures_have_alternative_text():
    outputs = [o for c in CELLS if c["cell_type"] == "code" for o in c["outputs"] if "image/png" in o.get("data", {})]
    missing = [o for o in outputs if len(o["metadata"].get("image/png", {}).get("alt", "")) < 20]
    assert len(outputs) > 15 and missing == []
    for text in [*TEXTS, README]:
        assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]", text))


def test_main_path_is_short():
    end = next(i for i, c in enumerate(CELLS) if "".join(c["source"]).startswith("## 10."))
    words = sum(len("".join(c["source"]).split()) for c in CELLS[:end] if c["cell_type"] == "markdown")
    assert end <= 90 and words <= 6000


EXERCISES = [(i, "".join(c["source"])) for i, c in enumerate(CELLS) if "<summary>Solution</summary>" in "".join(c["source"])]


@pytest.mark.parametrize("i, text", EXERCISES, ids=[re.search(r"def (\w+)", text)[1] for _, text in EXERCISES])
def test_exercises_tell_right_from_wrong_and_unsolved(vitgan, capsys, i, text):
    cell = "".join(CELLS[i + 1]["source"])
    solution = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    name, check = re.search(r"def (\w+)", cell)[1], re.split(r"\n\n(?=\S)", cell, maxsplit=1)[1]

    def verdict(definition):
        exec(definition + "\n" + check, dict(vars(vitgan)))
        return capsys.readouterr().out

    doubled = f"{solution}\nright = {name}\ndef {name}(*arguments):\n    return 2 * right(*arguments)\n"
    assert "not yet" in verdict(cell.removesuffix(check)) and "not right" in verdict(doubled)
    assert verdict(solution) == f"{name}: right.\n"


def test_five_exercises():
    assert len(EXERCISES) == 5


# ------------------------------------------------------------------------------------------------------------- numbers


def printed():
    """All that the notebook's cells printed or captioned."""
    outputs = [o for c in CELLS if c["cell_type"] == "code" for o in c["outputs"]]
    return "\n".join("".join(o.get("text", o.get("data", {}).get("text/markdown", ""))) for o in outputs)


def test_minutes_and_distance_in_the_text_are_those_of_the_committed_run():
    images, minutes = re.search(r"cpu profile on [^:]+: ([\d,]+) images in ([\d.]+) minutes", printed()).groups()
    swd = float(re.search(r"^swd +([\d.]+)$", printed(), re.MULTILINE)[1])
    assert f"{minutes} minutes" in TEXTS[0] and f"after {minutes} minutes" in README and images in README
    assert f"Wasserstein distance {swd:.1f} " in README


def test_every_score_in_the_text_is_in_the_evidence():
    rows = [row for row in evidence() if row["cfd"]]
    groups = {}
    for row in rows:
        groups.setdefault((row["ablation"], row["settings"], row["note"], row["images"]), []).append(float(row["cfd"]))
    known = {round(float(row[name])) for row in rows for name in ("cfd", "cfd_raw") if row[name]}
    known |= {round(sum(group) / len(group)) for group in groups.values()}
    stated = [int(n.replace(",", "")) for text in [*TEXTS, README] for n in re.findall(r"cFD \**([\d,]+)", text)]
    assert len(stated) > 3 and [n for n in stated if n not in known] == []


def test_the_card_tells_what_the_weights_say(vitgan):
    path = ROOT / "assets" / "vitgan-16.safetensors"
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    _, config, card = vitgan.load_generator(path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert text.count(sha) == 2 and sha in "".join("".join(c["source"]) for c in CELLS)
    assert f"{card['images seen']:,} images" in text and f"| cFD | {round(card['cFD'])} " in text and f"batch {config.batch_size}," in text
