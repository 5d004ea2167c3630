"""The notebook as a file: that it ran, where it opens, how it is formatted."""

import json
import re
import sys
import warnings

from conftest import CODE, MARKDOWN, NOTEBOOK, ROOT, run


def test_notebook_ran_from_1_to_n_without_errors_or_warnings():
    assert [c["execution_count"] for c in CODE] == list(range(1, len(CODE) + 1))
    outputs = [o for c in CODE for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert NOTEBOOK.stat().st_size < 4 * 2**20


def test_code_is_formatted_and_sizes_are_printed():
    """Sizes only warn: they say where to take something out."""
    out, _ = run(sys.executable, ROOT / "tests" / "sizes.py")
    assert "helpers.py" in out
    warnings.warn(out, stacklevel=1)
    for command in (["format", "--check"], ["check", "--select", "E,F,I,B,UP"]):
        files = [str(ROOT / name) for name in ("helpers.py", "tests", NOTEBOOK.name)]
        run(sys.executable, "-m", "ruff", *command, "--line-length", "100", "--no-cache", *files)


def test_values_that_papermill_injects_come_before_anything_is_loaded():
    """It writes them into a cell below the one with this tag."""
    (cell,) = (cell for cell in CODE if "parameters" in cell["metadata"].get("tags", []))
    lines = [line for line in cell["text"].splitlines() if line and not line.startswith("#")]
    names = [line.split("=")[0].strip(" +") for line in lines]
    assert names == ["data_dir", "image_size", "profile", "settings", "drive", "settings"]
    assert (
        MARKDOWN.count("VITGAN_SETTINGS") + sum("VITGAN_SETTINGS" in c["text"] for c in CODE) == 1
    )


def test_notebook_opens_in_colab_with_a_gpu_and_without_links_that_colab_ignores():
    metadata = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
    assert "widgets" not in metadata and "](#" not in MARKDOWN
    pictures = re.findall(r"!\[[^]]*\]\((.{0,30})", MARKDOWN)  # Colab shows those inside alone
    assert len(pictures) >= 4 and all(p.startswith(("data:image", "https:")) for p in pictures)
