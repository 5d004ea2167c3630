"""Sizes and density of the code and the text, beside what they should be at most.

    python tests/sizes.py

Lines are those that are not blank; density is nodes of expressions and statements a line.
"""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lines_and_nodes(sources):
    """(lines that are neither blank nor comments, nodes that are expressions or statements)."""
    lines = [line.strip() for source in sources for line in source.splitlines()]
    kinds = (ast.expr, ast.stmt)
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    count = sum(bool(line) and not line.startswith("#") for line in lines)
    return count, sum(isinstance(node, kinds) for node in nodes)


def main():
    cells = json.loads((ROOT / "ViTGAN_CIFAR10.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"data:image[^)]*|```.*?```|\$\$.*?\$\$", "", text, flags=re.S)
    rows = [
        ("cells", len(cells), 100),
        ("words", len(text.split()), 5600),
        ("longest cell", max(source.count("\n") + 1 for source in code), 45),
        ("README's words", len((ROOT / "README.md").read_text(encoding="utf-8").split()), 650),
    ]
    parts = {"notebook": (code, 1250)}
    for pattern, most in (("helpers.py", 340), ("tests/*.py", 1400), ("tests/*/*.py", 450)):
        parts[pattern] = [path.read_text(encoding="utf-8") for path in ROOT.glob(pattern)], most
    for name, (sources, most) in parts.items():
        lines, nodes = lines_and_nodes(sources)
        rows += [
            (f"{name}, lines", lines, most),
            (f"{name}, density", round(nodes / lines, 1), 7.5),
        ]
    for name, found, most in rows:
        print(f"{name:24}{found:8}{'  more than' if found > most else '  of'} {most}")


if __name__ == "__main__":
    main()
