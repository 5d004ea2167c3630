"""The notebook as a file: its budgets, that it ran, and that its cells stand on their own."""
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

from conftest import CELLS, CODE, MARKDOWN, NOTEBOOK, ROOT, run
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook


def test_notebook_ran_from_1_to_n_without_errors_or_warnings():
    assert [c["execution_count"] for c in CODE] == list(range(1, len(CODE) + 1))
    outputs = [o for c in CODE for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert NOTEBOOK.stat().st_size < 4 * 2**20

def test_notebook_keeps_its_budgets():
    lines = [sum(bool(line.strip()) for line in cell["text"].splitlines()) for cell in CODE]
    hidden = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\(https?:[^)]*\)|data:image[^)]*"
    prose = re.sub(hidden, " ", MARKDOWN, flags=re.S)
    counted = re.sub(r"(?m)^#+ [\d.]+|[Ss]ections? [\d.]+( (and|to) [\d.]+)?", "", prose)
    words, numerals = len(prose.split()), len(re.findall(r"(?<![\w.])\d[\d,.]*", counted))
    def text(pattern):
        return "".join(path.read_text(encoding="utf-8") for path in ROOT.glob(pattern))

    budgets = {
        "cells": (len(CELLS), 90), "words": (words, 5000), "longest cell": (max(lines), 40),
        "lines of code": (sum(lines), 950), "numerals": (numerals, 0.035 * words),
        "helpers.py": (text("helpers.py").count("\n"), 300),
        "README's words": (len(text("README.md").split()), 650),
        "tests": (text("tests/*.py").count("\n"), 1200),
        "experiments": (text("tests/experiments/*.*").count("\n"), 450)}
    print(*(f"{what}: {found} of {most:.0f}" for what, (found, most) in budgets.items()), sep="\n")
    assert all(found <= most for found, most in budgets.values())
    rules = ["--line-length", "100", "--select", "E,F,I,B,UP", "--no-cache"]
    run(sys.executable, "-m", "ruff", "check", *rules, ".")

def test_notebook_opens_in_colab_with_a_gpu_and_without_links_that_colab_ignores():
    metadata = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
    assert "widgets" not in metadata and "](#" not in MARKDOWN
    pictures = re.findall(r"!\[[^]]*\]\((.{0,30})", MARKDOWN)  # Colab shows those inside alone
    assert len(pictures) >= 4 and all(p.startswith(("data:image", "https:")) for p in pictures)

def test_notebook_runs_without_tests_and_with_every_demonstration_run_twice(kit):
    """Section 8 of the smoke profile prints the same numbers in both copies."""
    before = CODE[: next(i for i, cell in enumerate(CODE) if cell["section"] == "8")]
    results = [cell for cell in CODE if cell["section"] == "8"]
    again = [cell for cell in before if cell["section"][0] in "3456" and not cell["defines"]]

    def execute(name, cells):
        notebook = new_notebook(cells=[new_code_cell(cell["text"]) for cell in cells])
        NotebookClient(notebook, timeout=400).execute(cwd=str(kit), env={
            **os.environ, "VITGAN_SETTINGS": "profile=smoke data_dir=digits precision=float32",
            "VITGAN_RUNS": str(kit / name), "OMP_NUM_THREADS": "1"})
        outputs = [o for cell in notebook.cells[-len(results):] for o in cell.outputs]
        return "".join(o.get("text") or o.get("data", {}).get("text/markdown", "") for o in outputs)

    copies = {"once": before + results, "twice": before + again + results}
    with ThreadPoolExecutor() as pool:
        once, twice = pool.map(execute, copies, copies.values())
    assert again and "diversity" in once and once == twice
