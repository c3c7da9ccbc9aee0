"""Saves the code that loads a checkpoint where this package is not installed.

One generated file runs the model, another the image processors. Files of a user's own classes are saved with
them, and their imports from this package become imports from the generated file.
"""

import ast
import importlib
import sys
import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..model.checkpoint_code import IMAGE_PROCESSORS, CodeWriter, installed_version, name_classes
from ..model.options import type_of
from ..model.registry import TABLES, classes_of
from .code_bundle import LOADED, Root, bundle, reachable_modules, read_module


logger = logging.get_logger(__name__)

PACKAGE = __package__.partition(".")[0]
IMAGE_PROCESSOR_FILE = IMAGE_PROCESSORS["pil"].partition(".")[0]


class RemoteCodeError(ValueError):
    """A user's class that a saved checkpoint could not carry."""


class NoSourceFileError(RemoteCodeError):
    """A class that is in no file at all."""


def is_checkpoint(folder: str | PathLike) -> bool:
    """Returns whether a folder is named as the checkpoints that `Trainer` writes during training."""
    return Path(folder).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")


class GeneratedFiles(CodeWriter):
    """Writes the code of models, configurations and image processors of this package."""

    def check(self, model: PreTrainedModel) -> None:
        """Warns, before training, if checkpoints would lack a user's class or could not be saved with it."""
        try:
            files_to_save(model)
        except (OSError, SyntaxError) as error:
            logger.warning_once(f"Saved checkpoints will lack the code of your classes: {error}")
        except RemoteCodeError as error:
            logger.warning_once(
                f"save_pretrained will refuse this model for the code of your classes: {error}"
            )

    def describe(self, saved: Any) -> None:
        """Writes into a configuration or image processor which file holds its classes, and its version."""
        if isinstance(saved, PreTrainedConfig):
            before = getattr(saved, "auto_map", None) or {}
            name_classes(saved)
            saved.auto_map |= before
            saved.vit_hf_version = installed_version()
            return
        described = saved
        if isinstance(saved, PreTrainedModel):
            described = saved.config
            described.auto_map[saved._auto_class] = f"{described.code_file}.{type(saved).__name__}"
        classes, auto_map = own_classes(saved), dict(getattr(described, "auto_map", None) or {})
        try:
            auto_map |= {name: f"{file_of(cls).stem}.{cls.__name__}" for name, cls in classes.items()}
        except NoSourceFileError:  # then `save` writes none of their files
            auto_map = {name: reference for name, reference in auto_map.items() if name not in classes}
        if auto_map:
            described.auto_map = auto_map

    def save(self, saved: Any, folder: str | PathLike) -> None:
        """Writes the generated file, and those of a user's own classes.

        Raises:
            RemoteCodeError: if a user's class could not be loaded elsewhere; the rest was saved. For a
                class without a file, a checkpoint that `Trainer` writes during training is saved with a
                warning instead.
        """
        name, roots = generated_file(saved)
        path, functions = Path(folder) / f"{name}.py", {}
        try:
            texts, used = files_to_save(saved)
            parts = {field: cls for field, cls in own_classes(saved).items() if field in TABLES}
            if parts:
                functions["shipped_classes"] = _write_shipped_classes(saved.config, parts)
        except (OSError, SyntaxError) as error:
            logger.warning(f"The code of your classes was not saved: {error}")
            texts, used = {}, []
        except RemoteCodeError as error:
            path.write_text(generate(name, roots), encoding="utf-8")
            if isinstance(error, NoSourceFileError) and is_checkpoint(folder):
                logger.warning(f"The code of your classes was not saved: {error}")
                return
            error.add_note(
                f"The rest of the checkpoint was saved to {folder}: weights, configuration and the code of "
                f"{PACKAGE}. Your code was not, so it loads only where your class is defined first."
            )
            raise
        path.write_text(generate(name, [*roots, *used], functions), encoding="utf-8")
        for file, text in texts.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")


def generate(name: str, roots: Sequence[Root], functions: Mapping[str, str] | None = None) -> str:
    """Writes the generated file with what `roots` need; `functions` replace those of the package."""
    classes = ", ".join(sorted({root for root, _ in roots if root.startswith("Adaptive")}))
    header = f"""{name}.py: one file of {PACKAGE} {installed_version()}, with all that runs a checkpoint.

Generated by `save_pretrained`: do not edit. Where {PACKAGE} is not installed, saving copies it unchanged.
Each part uses those above it. The last line is a checksum.
transformers' Auto classes load, with `trust_remote_code=True`:
{textwrap.fill(classes, 106, initial_indent="    ", subsequent_indent="    ")}"""
    return bundle(roots, header, functions)


def generated_file(saved: Any) -> tuple[str, list[Root]]:
    """Returns the name of the file that runs a model, configuration or image processor, and its classes."""
    if not isinstance(saved, PreTrainedConfig | PreTrainedModel):
        return IMAGE_PROCESSOR_FILE, [_root(name.rpartition(".")[2]) for name in IMAGE_PROCESSORS.values()]
    config = saved if isinstance(saved, PreTrainedConfig) else saved.config
    roots = [_root(name) for name in config.auto_classes.values()]
    if isinstance(saved, PreTrainedModel):
        base = next(cls for cls in type(saved).__mro__ if _is_of_package(cls))
        roots += [root for root in [(base.__name__, base.__module__)] if root not in roots]
    return config.code_file, roots


def _root(name: str) -> Root:
    return name, getattr(sys.modules[PACKAGE], name).__module__


def _is_of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


def own_classes(saved: Any) -> dict[str, type]:
    """Returns the user's own classes, by field of the configuration or Auto class."""
    if isinstance(saved, PreTrainedConfig):
        return {}
    is_model = isinstance(saved, PreTrainedModel)
    classes = classes_of(saved.base_model) if is_model else {}
    if not _is_of_package(type(saved)):
        classes[saved._auto_class if is_model else "AutoImageProcessor"] = type(saved)
    return classes


def file_of(cls: type) -> Path:
    """Returns the file that defines a class.

    Raises:
        NoSourceFileError: if it is defined in a notebook, in a function, or in the script that runs.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if (
        cls.__module__ == "__main__"
        or file is None
        or not Path(file).is_file()
        or "<locals>" in cls.__qualname__
    ):
        raise NoSourceFileError(
            f"{cls.__name__} is defined in a notebook, a function or the script that runs, so that its code "
            "cannot be saved with the model. Put the class into a file of its own, such as my_parts.py, "
            "import it from there, and build the model anew."
        )
    return Path(file)


def files_to_save(saved: Any) -> tuple[dict[str, str], list[Root]]:
    """Returns the files of a user's classes, with those that they import from their own folders, by name.

    The second value lists the names that they import from this package.

    Raises:
        RemoteCodeError: if some of it could not be loaded elsewhere; names file, line and remedy.
    """
    classes = own_classes(saved)
    if not classes:
        return {}, []
    name, roots = generated_file(saved)
    modules = reachable_modules(roots)
    reserved = {name, IMAGE_PROCESSOR_FILE}
    origins: dict[str, Path] = {}
    texts: dict[str, str] = {}
    used: list[Root] = []
    waiting = [file_of(cls) for cls in classes.values()]
    while waiting:
        path = waiting.pop()
        if path.stem in reserved:
            raise RemoteCodeError(f"{path} has the name of a file that {PACKAGE} generates. Rename it.")
        if origins.setdefault(path.stem, path) != path:
            raise RemoteCodeError(f"{path} and {origins[path.stem]} have the same name. Rename one.")
        if f"{path.stem}.py" not in texts:
            texts[f"{path.stem}.py"], siblings, names = rewrite_imports(path, name, modules)
            waiting += siblings
            used += names
    return texts, list(dict.fromkeys(used))


def rewrite_imports(path: Path, code_file: str, modules: Sequence[str]) -> tuple[str, list[Path], list[Root]]:
    """Rewrites the imports of a user's file, so that they work with a checkpoint's generated file.

    Args:
        path: of the user's file.
        code_file: name of the generated file, without the ending.
        modules: modules of this package whose definitions it can hold.

    Returns:
        The text, the files in the same folder that it imports, and the names from the generated file.

    Raises:
        RemoteCodeError: for an import that would fail elsewhere.
    """
    # Columns of `ast` count bytes.
    lines = path.read_text(encoding="utf-8").encode().splitlines(keepends=True)
    siblings, used = [], []
    nodes = [
        node for node in ast.walk(ast.parse(b"".join(lines))) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        place = f"{path}, line {node.lineno}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == PACKAGE:
                    raise RemoteCodeError(
                        f"{place}: write `from {alias.name} import ...`, to load without the package."
                    )
                if _is_sibling(path, alias.name):
                    raise RemoteCodeError(
                        f"{place}: write `from {alias.name} import ...` for the file in its folder."
                    )
            continue
        if node.level > 1 or (node.level == 1 and (node.module is None or "." in node.module)):
            raise RemoteCodeError(
                f"{place}: only `from .file import name`, of a file in its folder, works in a checkpoint."
            )
        if node.level == 1 and node.module == code_file:  # a file that came with another checkpoint
            homes = {alias.name: _find_definition(alias.name, modules) for alias in node.names}
            for name, home in homes.items():
                if home is None:
                    raise RemoteCodeError(f"{place}: {PACKAGE} {installed_version()} has no {name}.")
            used += homes.items()
            continue
        if node.level == 1 or _is_sibling(path, node.module):
            siblings.append(path.parent / f"{node.module}.py")
            node.level = 1
            statements = [ast.unparse(node)]
        elif node.module.partition(".")[0] == PACKAGE:
            statements, names = _from_generated_file(node, code_file, modules)
            used += names
        else:
            continue
        start, end = node.lineno - 1, node.end_lineno - 1
        indent, rest = lines[start][: node.col_offset], lines[end][node.end_col_offset :]
        if indent.strip():
            raise RemoteCodeError(f"{place}: put this import on a line of its own.")
        if rest.lstrip().startswith(b";"):
            rest = b"\n" + indent + rest.lstrip()[1:].lstrip()
        # One statement a line, or transformers would not see them.
        text = (b"\n" + indent).join(statement.encode() for statement in statements)
        lines[start : end + 1] = [indent + text + rest]
    text = b"".join(lines).decode()
    known = {code_file} | {sibling.stem for sibling in siblings}
    for found in LOADED.finditer(text):
        if (found[1] or found[2]) not in known:
            raise RemoteCodeError(
                f"{path} has the text {found[0].strip()!r}, which transformers takes for an import of a file "
                "that is not there. Change its words."
            )
    return text, siblings, used


def _is_sibling(path: Path, module: str) -> bool:
    """Returns whether a module is the file of that name in the same folder, and not something installed."""
    file = path.parent / f"{module}.py"
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return file.is_file() and (loaded is None or Path(loaded).resolve() == file.resolve())


def _find_definition(name: str, modules: Sequence[str]) -> str | None:
    """Finds the module that defines a name."""
    return next((module for module in modules if name in read_module(module).definitions), None)


def _from_generated_file(
    node: ast.ImportFrom, code_file: str, modules: Sequence[str]
) -> tuple[list[str], list[Root]]:
    """Rewrites an import to use the generated file; names that it cannot hold still come from the package."""
    module = importlib.import_module(node.module)
    used, inside, outside = [], [], []
    for alias in node.names:
        home, value = _find_definition(alias.name, modules), getattr(module, alias.name, None)
        if home is not None and getattr(importlib.import_module(home), alias.name) is value:
            inside.append(alias)
            used.append((alias.name, home))
        else:
            outside.append(alias)
    statements = [ast.unparse(ast.ImportFrom(code_file, inside, 1))] if inside else []
    statements += [ast.unparse(ast.ImportFrom(node.module, outside, 0))] if outside else []
    return statements, used


def _write_shipped_classes(config: PreTrainedConfig, classes: Mapping[str, type]) -> str:
    """Writes the function that imports the user's classes, which import the generated file themselves."""
    lines = [
        "def shipped_classes() -> dict[str, type]:",
        '    """Returns the author\'s own classes, by their names in the configuration."""',
        *dict.fromkeys(
            f"    from .{file_of(cls).stem} import {cls.__name__} as {field}_class"
            for field, cls in classes.items()
        ),
        "",
        "    return {",
        *(f"        {type_of(getattr(config, field))!r}: {field}_class," for field in classes),
        "    }",
    ]
    return "\n".join(lines)
