"""The notebook's set-up cell alone in an empty folder, as in Colab, with GitHub replaced by folders of this machine."""

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest
from conftest import NOTEBOOK, ROOT

CELL = next(source for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
            and "opened_from" in (source := "".join(cell["source"])))


def test_set_up_cell_clones_once_and_names_what_cannot_be_cloned(tmp_path, monkeypatch):
    repository, empty, other = (tmp_path / name for name in ("github/ORG/REPO", "empty", "other"))
    for folder in (repository, empty, other):
        folder.mkdir(parents=True)
    for file in (NOTEBOOK, ROOT / "helpers.py"):
        shutil.copy(file, repository)
    for command in ("init -q -b main", "add .", "-c user.name=t -c user.email=t@example.org commit -q -m all"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    for name, value in {"COUNT": "1", "KEY_0": f"url.file://{tmp_path}/github/.insteadOf", "VALUE_0": "https://github.com/"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
    monkeypatch.setenv("KMP_TARGET_PORT", "9")  # nobody answers
    for start in (empty, empty, empty / "vitgan"):  # a second session, and the cell run again in the same one
        monkeypatch.chdir(start)
        exec(CELL, {})
        assert os.getcwd() == str(empty / "vitgan")
    found = subprocess.run([sys.executable, "-c", "import helpers; print(helpers.__file__)"], capture_output=True, text=True)
    assert found.stdout.strip() == str(empty / "vitgan" / "helpers.py")

    listed = json.dumps([{"path": "fileId=https%3A%2F%2Fgithub.com%2Fsomeone%2Ffork%2Fblob%2Fmine%2FViTGAN_CIFAR10.ipynb"}])
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(listed.encode()))
    monkeypatch.chdir(other)
    with pytest.raises(RuntimeError, match=r"^someone/fork \(mine\) cannot be cloned"):
        exec(CELL, {})
