"""Legal names of options, with a line on each, read from source files: importing them imports torch."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import transformers


PACKAGE = __package__.partition(".")[0]


@cache
def _parse(module: str) -> ast.Module:
    """Syntax tree of a module of this package, such as "model.selectors", which is not imported."""
    path = (
        Path(importlib.util.find_spec(PACKAGE).origin).parent.joinpath(*module.split(".")).with_suffix(".py")
    )
    return ast.parse(path.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> tuple[str, ast.stmt]:
    """Returns the module and the statement that define a name which a module defines or imports.

    Raises:
        LookupError: if it does neither.
    """
    for node in _parse(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and node.level and any(one.name == name for one in node.names):
            *parents, _ = module.split(".")
            parents = parents[: len(parents) - node.level + 1]
            return _definition(".".join([*parents, node.module]), name)
    raise LookupError(f"{module} does not define {name}")


def read_choices(module: str, table: str) -> dict[str, str]:
    """Reads a table of classes or functions by name: `{name: first sentence of its docstring}`.

    Args:
        module: that defines the table, below this package, such as "model.selectors".
        table: name of a dict display; `**dict.fromkeys(OTHER, Class)` in it stands for the entries of OTHER.
    """
    module, node = _definition(module, table)
    choices = {}
    for key, value in zip(node.value.keys, node.value.values, strict=True):
        if key is not None:
            docstring = ast.get_docstring(_definition(module, value.id)[1]) or ""
            choices[key.value] = re.split(r"(?<=[.:;])\s", docstring.replace("\n", " "))[0].rstrip(".:;")
        else:
            choices |= read_choices(module, value.args[0].id)
    return choices


def _fields(tree: ast.Module, name: str) -> dict[str, str]:
    """Fields of a dataclass with their help."""
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            metadata = [one.value for one in node.value.keywords if one.arg == "metadata"]
            entries = zip(metadata[0].keys, metadata[0].values, strict=True) if metadata else ()
            texts = [value for key, value in entries if ast.literal_eval(key) == "help"]
            fields[node.target.id] = _text(texts[0]) if texts else ""
    return fields


def _text(node: ast.expr) -> str:
    """The text of a literal, its white space made single blanks; "" for anything computed."""
    try:
        return " ".join(str(ast.literal_eval(node)).split())
    except ValueError:
        return ""


@cache
def read_fields(module: str, name: str) -> dict[str, str]:
    """Reads the fields of a dataclass of this package, with their help, from its source."""
    return _fields(_parse(module), name)


@cache
def trainer_flags() -> dict[str, str]:
    """Reads the fields of transformers' `TrainingArguments`, with their help, from its source."""
    path = Path(transformers.__file__).parent / "training_args.py"
    return _fields(ast.parse(path.read_text(encoding="utf-8")), "TrainingArguments")
