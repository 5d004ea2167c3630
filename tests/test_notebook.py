"""The notebook as a file: its budgets, that it ran, and that its cells stand on their own."""

import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import nbformat
from conftest import NOTEBOOK, ROOT

ENVIRONMENT = {**os.environ, "VITGAN_SETTINGS": "profile=smoke data_dir=digits precision=float32",
               "OMP_NUM_THREADS": "1"}
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [c for c in CELLS if c["cell_type"] == "code"]
SOURCES = ["".join(c["source"]) for c in CODE]
TEXT = "\n\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")


def section(cell):
    """The number of the section in which a cell stands, 0 before the first."""
    above = "\n".join("".join(c["source"]) for c in CELLS[: CELLS.index(cell) + 1]
                      if c["cell_type"] == "markdown")
    return int(([0] + re.findall(r"^## (\d+)\. ", above, re.M))[-1])


def is_demonstration(cell):
    return 3 <= section(cell) <= 6 and "definition" not in cell["metadata"].get("tags", [])


def test_notebook_ran_from_1_to_n_without_errors_or_warnings():
    assert [c["execution_count"] for c in CODE] == list(range(1, len(CODE) + 1))
    outputs = [o for c in CODE for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert NOTEBOOK.stat().st_size < 4 * 2**20


def test_notebook_keeps_its_budgets():
    lines = [sum(bool(line.strip()) for line in source.splitlines()) for source in SOURCES]
    hidden = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\(https?:[^)]*\)|data:image[^)]*"
    prose = re.sub(hidden, " ", TEXT, flags=re.S)
    counted = re.sub(r"(?m)^#+ [\d.]+|[Ss]ections? [\d.]+( (and|to) [\d.]+)?", "", prose)
    words, numerals = len(prose.split()), len(re.findall(r"(?<![\w.])\d[\d,.]*", counted))
    print(f"{len(CELLS)} cells, {words} words, {sum(lines)} lines of code (median "
          f"{statistics.median(lines)}), {1000 * numerals / words:.0f} numerals in 1,000 words")
    assert len(CELLS) <= 90 and words <= 5000 and sum(lines) <= 950 and max(lines) <= 40
    assert numerals <= 0.035 * words
    helper = (ROOT / "helpers.py").read_text(encoding="utf-8").splitlines()
    assert len(helper) <= 300 and max(map(len, helper)) <= 100


def test_python_is_tidy():
    rules = ["--line-length", "100", "--select", "E,F,I,B,UP"]
    checked = subprocess.run([sys.executable, "-m", "ruff", "check", *rules, "--no-cache", "."],
                             cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout[-3000:]


def test_notebook_opens_in_colab_with_a_gpu_and_without_links_that_colab_ignores():
    metadata = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
    assert "widgets" not in metadata and "](#" not in TEXT and "Change runtime type" in TEXT
    pictures = re.findall(r"!\[[^]]+\]\((.{0,30})", TEXT)  # Colab shows those inside the file alone
    assert len(pictures) >= 4 and all(p.startswith(("data:image", "https:")) for p in pictures)


def test_demonstrations_leave_nothing_behind():
    """No cell from section 7 on reads a name that a demonstration of sections 3 to 6 assigns."""
    before, demonstrated, needed = set(), set(), set()
    for cell, source in zip(CODE, SOURCES, strict=True):
        assigned, read = set(), set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name):
                (assigned if isinstance(node.ctx, ast.Store) else read).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assigned.add(node.name)
            elif isinstance(node, ast.arg):
                assigned.add(node.arg)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                assigned.add(node.name)
            elif isinstance(node, ast.alias):
                assigned.add((node.asname or node.name).split(".")[0])
        demonstration = is_demonstration(cell)
        if demonstration:
            demonstrated |= assigned
        elif section(cell) >= 7:
            needed |= read - assigned - before
        if not demonstration:
            before |= assigned
    assert demonstrated and needed & demonstrated == set()


def test_notebook_runs_without_tests_and_with_every_demonstration_run_twice(tmp_path):
    """Sections 7 and 8 of the smoke profile print the same numbers in both copies."""
    for path in (ROOT / "helpers.py", ROOT / "assets"):
        (tmp_path / path.name).symlink_to(path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in CELLS if section(cell) < 9]
    first = next(i for i, c in enumerate(cells) if section(c) == 8)
    again = [c for c in cells if c["cell_type"] == "code" and is_demonstration(c)]
    numbers = []
    for name, order in (("once", cells), ("twice", [*cells[:first], *again, *cells[first:]])):
        copies = [nbformat.from_dict({**json.loads(json.dumps(c)), "id": f"c{i}"})
                  for i, c in enumerate(order)]
        copy = nbformat.v4.new_notebook(cells=copies, metadata=notebook.metadata)
        nbformat.write(copy, tmp_path / f"{name}.ipynb")
    shutil.copy(NOTEBOOK, tmp_path)
    running = [subprocess.Popen(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace",
         f"{name}.ipynb"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=dict(ENVIRONMENT, VITGAN_RUNS=str(tmp_path / f"runs-{name}")))
        for name in ("once", "twice")]
    for name, process in zip(("once", "twice"), running, strict=True):
        errors = process.communicate(timeout=400)[1]
        assert process.returncode == 0, errors[-2000:]
        last = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells[first - len(cells):]
        printed = [o.get("text", "") + str(o.get("data", {}).get("text/markdown", ""))
                   for cell in last if cell.cell_type == "code" for o in cell.outputs]
        numbers.append("\n".join(printed))
    assert "diversity" in numbers[0] and numbers[0] == numbers[1]
