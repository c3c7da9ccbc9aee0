"""Code outside `vit_hf/model/` uses models by their public names."""

import ast
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


ROOT = Path(__file__).parents[2]
MODEL = ROOT / "vit_hf" / "model"
FOLDERS = ("vit_hf", "scripts", "tests")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names() -> set[str]:
    """Private attributes, methods and functions of the files of models; not those that transformers or
    torch define."""
    names = set()
    for path in MODEL.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    inherited = {*dir(PreTrainedModel), *dir(PreTrainedConfig), *vars(nn.Module()), "_attn_implementation"}
    return {name for name in names if is_private(name) and name not in inherited}


def uses(path: Path, names: set[str]) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in names:
            owner = node.value
            if ast.unparse(owner) not in ("self", "cls", "super()"):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and "model" in (node.module or "").split("."):
            found += [f"line {node.lineno}: {name.name}" for name in node.names if is_private(name.name)]
    return found


def test_others_use_public_names():
    names = private_names()
    assert len(names) > 20
    paths = [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.parent != MODEL
    ]
    found = {str(path.relative_to(ROOT)): uses(path, names) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_private_names_are_found(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("from vit_hf.model.patches import _resize\nmodel.vit._run_blocks(1)\nself._run_blocks\n")
    assert uses(file, private_names()) == ["line 1: _resize", "line 2: model.vit._run_blocks"]
