"""The notebook as a file: what is defined where, in which order, how long, and that it was run from 1 to N."""

import ast
import builtins
import dis
import json
import re
import subprocess
import sys
import types
from collections import Counter

import pytest
from conftest import NOTEBOOK, ROOT

REQUIRED = """
Config EqualizedLinear MappingNetwork PositionalEmbedding SelfModulatedLayerNorm SelfAttention GeneratorBlock
FourierFeatures ModulatedLinear PatchSIREN Generator diff_augment OverlappingPatches ISNLinear L2SelfAttention
DiscriminatorBlock Discriminator discriminator_loss generator_loss train
""".split()


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def code(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def text(notebook):
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]


def tags(cell):
    return cell["metadata"].get("tags", [])


def tree(cell):
    """The cell's syntax tree, magics and shell commands left out."""
    lines = "".join(cell["source"]).splitlines()
    return ast.parse("\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in lines))


def defined_names(cell):
    for node in tree(cell).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


# --------------------------------------------------------------------------------------------------------- definitions


def test_required_names_are_defined_once_and_in_tagged_cells(code):
    tagged = Counter(name for cell in code if "definition" in tags(cell) for name in defined_names(cell))
    others = {name for cell in code if "definition" not in tags(cell) for name in defined_names(cell)}
    assert [name for name in REQUIRED if tagged[name] != 1] == []
    assert others & {*tagged} == set()


def is_constant(node):
    """Literals, containers of them, arithmetic on them and dict(...): nothing that computes or draws anything."""
    allowed = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
               ast.keyword, ast.expr_context, ast.Name)
    is_dict = lambda n: isinstance(n, ast.Call) and getattr(n.func, "id", "") == "dict"  # noqa: E731
    return all(isinstance(n, allowed) or is_dict(n) for n in ast.walk(node))


def test_definition_cells_only_define(code):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for cell in code:
        if "definition" not in tags(cell):
            continue
        for node in ast.parse("".join(cell["source"])).body:
            fine = isinstance(node, allowed) or (isinstance(node, (ast.Assign, ast.Expr)) and is_constant(node.value))
            assert fine, ast.unparse(node)


def globals_read(block):
    """The names of globals that a code object and those inside it read."""
    yield from (i.argval for i in dis.get_instructions(block) if i.opname == "LOAD_GLOBAL")
    for inner in block.co_consts:
        if isinstance(inner, types.CodeType):
            yield from globals_read(inner)


def test_definitions_read_nothing_that_only_other_cells_define(code, vitgan):
    known = {*vars(vitgan), *vars(builtins)}
    for cell in code:
        if "definition" in tags(cell):
            assert {*globals_read(compile("".join(cell["source"]), "cell", "exec"))} <= known


def test_definitions_alone_load_in_2_seconds_after_imports(code):
    nodes = [node for cell in code if "definition" in tags(cell) for node in tree(cell).body]
    imports = "\n".join(ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))
    script = (f"{imports}\nimport time, helpers\nstart = time.process_time()\n"
              f"module = helpers.load_definitions({str(NOTEBOOK)!r})\nprint(time.process_time() - start)\n"
              f"assert all(hasattr(module, name) for name in {REQUIRED!r})")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2


@pytest.mark.parametrize("name", REQUIRED)
def test_required_names_are_documented(vitgan, name):
    assert getattr(vitgan, name).__doc__


# ------------------------------------------------------------------------------------------------------------ executed


def test_ran_from_1_to_n(code):
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))


def test_no_errors_and_nothing_on_stderr(code):
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", "".join(cell["source"])[:200]


def test_pictures_are_of_modest_kinds(code):
    kinds = Counter(kind for c in code for o in c["outputs"] for kind in o.get("data", {}) if kind.startswith("image/"))
    assert set(kinds) <= {"image/png", "image/jpeg"} and kinds["image/png"] >= 10  # no SVG, no PDF


def test_no_path_or_name_of_the_machine_it_ran_on(code):
    text = json.dumps([c["outputs"] for c in code if c["outputs"]])
    assert not re.search(r"/(?:home|root|work|Users)/", re.sub(r'"image/png": "[^"]*"', "", text))


# ---------------------------------------------------------------------------------------------------------------- shape


def test_cells_fit_on_a_screen(code):
    sources = ["".join(c["source"]) for c in code]
    long = {s.splitlines()[0]: n for s in sources if (n := sum(bool(line.strip()) for line in s.splitlines())) > 40}
    assert long == {}


def test_file_is_small_enough_for_github(notebook):
    assert NOTEBOOK.stat().st_size < 4_000_000


def test_colab_metadata(notebook):
    metadata = notebook["metadata"]
    assert metadata["colab"] | {"provenance": [], "gpuType": "T4", "toc_visible": True} == metadata["colab"]
    assert metadata["accelerator"] == "GPU"
    assert (metadata["kernelspec"]["name"], metadata["kernelspec"]["display_name"]) == ("python3", "Python 3")


def test_every_cell_has_an_id_of_its_own(notebook):
    ids = [c.get("id") for c in notebook["cells"]]
    assert None not in ids and len(set(ids)) == len(ids)


def test_begins_with_title_and_badge(notebook, text):
    first = "".join(notebook["cells"][0]["source"])
    assert notebook["cells"][0]["cell_type"] == "markdown" and first.lstrip().startswith("# ")
    badge = r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/ViTGAN_CIFAR10\.ipynb"
    assert any(re.search(badge, t) for t in text[:3])


def test_sections_in_order(text):
    headings = [int(n) for t in text for n in re.findall(r"^#{1,2} +(?:Section +|§ *)?(\d+)\b", t, re.MULTILINE)]
    assert headings == [*range(1, 13)]


def test_installs_are_quoted_and_never_torch(code):
    lines = [line for c in code for line in "".join(c["source"]).splitlines()]
    for line in (line for line in lines if re.search(r"pip[\"', ]+install", line)):
        assert not re.search(r"install.*\btorch(?!-fidelity|metrics)", line), line
        assert not re.search(r"^\s*[!%]pip .*[^'\"\w-][\w-]+[<>]=?\d", line), line
