"""The set-up cell alone in an empty folder, as in Colab, and README's publishing command."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import NOTEBOOK, ROOT

COMMAND = re.search(r"^sed -i .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)[0]


def set_up_cell(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return next(source for c in cells if c["cell_type"] == "code"
                and "REPOSITORY" in (source := "".join(c["source"])))


@pytest.mark.parametrize("published", [False, True])
def test_set_up_cell_clones_once(tmp_path, monkeypatch, published):
    """GitHub is replaced by folders here; a copy that README's command published works too."""
    repository = tmp_path / "github" / ("you/name" if published else "ORG/REPO")
    empty = tmp_path / "empty"
    repository.mkdir(parents=True)
    empty.mkdir()
    for file in (NOTEBOOK, ROOT / "helpers.py", ROOT / "README.md"):
        shutil.copy(file, repository)
    if published:
        subprocess.run(COMMAND, shell=True, cwd=repository, check=True)
        for file in ("README.md", NOTEBOOK.name):
            assert "ORG/REPO" not in (repository / file).read_text(encoding="utf-8")
        assert "awaits publishing" not in (repository / NOTEBOOK.name).read_text(encoding="utf-8")
    for command in ("init -q -b main", "add .", "config user.name t", "config user.email t@t.org",
                    "commit -q -m all"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    for name, value in {"COUNT": "1", "KEY_0": f"url.file://{tmp_path}/github/.insteadOf",
                        "VALUE_0": "https://github.com/"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    cell = set_up_cell(repository / NOTEBOOK.name)
    for start in (empty, empty, empty / "vitgan"):  # a second session, and the cell run again
        monkeypatch.chdir(start)
        exec(cell, {})
        assert os.getcwd() == str(empty / "vitgan")
    found = subprocess.run([sys.executable, "-c", "import helpers; print(helpers.__file__)"],
                           capture_output=True, text=True)
    assert found.stdout.strip() == str(empty / "vitgan" / "helpers.py")
    assert sum(bool(line.strip()) for line in cell.splitlines()) <= 20
