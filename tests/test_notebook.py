"""The notebook as a file: run from 1 to N, without errors, its links alive, its cells no longer than a screen."""

import json
import re

from conftest import NOTEBOOK

CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [c for c in CELLS if c["cell_type"] == "code"]
TEXT = "\n\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")


def test_notebook_ran_from_1_to_n_without_errors_or_warnings():
    assert [c["execution_count"] for c in CODE] == list(range(1, len(CODE) + 1))
    outputs = [o for c in CODE for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []


def test_notebook_links_point_to_headings():
    anchors = {"#" + heading.strip().replace(" ", "-") for heading in re.findall("^#+ (.+)$", TEXT, re.M)}
    links = set(re.findall(r"\]\((#(?:[^()\s]|\([^()\s]*\))+)\)", TEXT))
    assert links and links - anchors == set()


def test_notebook_tables_begin_with_a_header():
    tables = re.findall(r"(?:^|\n\n)(\|.*)\n(.*)", TEXT)
    assert tables and [first for first, second in tables if not second.startswith("| ---")] == []


def test_notebook_cells_fit_on_a_screen():
    for lines in ("".join(c["source"]).splitlines() for c in CODE):
        assert sum(bool(line.strip()) for line in lines) <= 40, lines[0]
        assert [line for line in lines if len(line) > 121] == []
