"""How the files of a user's classes travel with a saved checkpoint.

They are saved flat, beside ours: what a file imports from this package or from a file in its own folder becomes
`from .file import name`, the only form that transformers follows when it loads code.
"""

import ast
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

# What `save_pretrained` copies without being told, here or where a checkpoint was unpacked.
OUR_FILES = frozenset(path.stem for path in Path(__file__).parent.glob("*.py"))
# With which transformers looks for files to load; it also finds them in docstrings.
LOADED = re.compile(r"^\s*from\s+\.(\S+)\s+import|^\s*import\s+\.(\S+)\s*$", re.MULTILINE)


class CannotTravel(ValueError):
    """A class that a saved checkpoint could not bring along."""


class NoFile(CannotTravel):
    """One that is in no file at all."""


def file_of(cls: type) -> Path:
    """The file that defines a class.

    Raises:
        NoFile: if it is defined in a notebook, or in the script that runs.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if cls.__module__ == "__main__" or file is None or not Path(file).is_file():
        raise NoFile(
            f"{cls.__name__} is defined in a notebook or the script that runs. Put it into a file of its own and import it."
        )
    return Path(file)


def files_to_save(classes: Mapping[str, type]) -> dict[str, str]:
    """Names and contents of the files of `classes`, and of what they import from their own folders.

    Raises:
        CannotTravel: if some of it would not be found again, with file, line and remedy.
    """
    origins: dict[str, Path] = {}
    texts: dict[str, str] = {}
    waiting = [file_of(cls) for cls in classes.values()]
    while waiting:
        path = waiting.pop()
        if path.stem in OUR_FILES:
            if "transformers_modules" in path.parts:  # a checkpoint's copy of it
                continue
            raise CannotTravel(f"{path} has the name of a file of vit_hf. Rename it.")
        if origins.setdefault(path.stem, path) != path:
            raise CannotTravel(f"{path} and {origins[path.stem]} have the same name. Rename one.")
        if f"{path.stem}.py" in texts:
            continue
        text, siblings = rewrite(path)
        texts[f"{path.stem}.py"] = text
        waiting += siblings
    return texts


def rewrite(path: Path) -> tuple[str, list[Path]]:
    """A file's text with imports of the form above, and the files beside it that it imports."""
    # Columns of `ast` count bytes.
    lines = path.read_text(encoding="utf-8").encode().splitlines(keepends=True)
    siblings = []
    nodes = [
        node for node in ast.walk(ast.parse(b"".join(lines))) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        place = f"{path}, line {node.lineno}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == __package__.partition(".")[0]:
                    raise CannotTravel(
                        f"{place}: write `from {alias.name} import ...`, so that it loads without the package."
                    )
                if _beside(path, alias.name):
                    raise CannotTravel(
                        f"{place}: write `from {alias.name} import ...` for the file beside it."
                    )
            continue
        if node.level > 1 or (node.level == 1 and (node.module is None or "." in node.module)):
            raise CannotTravel(
                f"{place}: only `from .file import name`, of a file in the same folder, can travel."
            )
        if node.level == 1 or _beside(path, node.module):
            siblings.append(path.parent / f"{node.module}.py")
            node.level = 1
            statements = [ast.unparse(node)]
        elif f"{node.module}.".startswith((f"{__package__}.", f"{__package__.partition('.')[0]}.")):
            statements = _from_package(node)
        else:
            continue
        start, end = node.lineno - 1, node.end_lineno - 1
        indent, rest = lines[start][: node.col_offset], lines[end][node.end_col_offset :]
        if indent.strip():
            raise CannotTravel(f"{place}: put this import on a line of its own.")
        if rest.lstrip().startswith(b";"):
            rest = b"\n" + indent + rest.lstrip()[1:].lstrip()
        # One a line, or transformers would not see them.
        text = (b"\n" + indent).join(statement.encode() for statement in statements)
        lines[start : end + 1] = [indent + text + rest]
    text = b"".join(lines).decode()
    known = OUR_FILES | {sibling.stem for sibling in siblings}
    for found in LOADED.finditer(text):
        if (found[1] or found[2]) not in known:
            raise CannotTravel(
                f"{path} has the text {found[0].strip()!r}, which transformers takes for an import of a file that is not "
                "there. Word it otherwise."
            )
    return text, siblings


def _beside(path: Path, module: str) -> bool:
    """Whether a module is the file of that name in the same folder, and not something installed."""
    file = path.parent / f"{module}.py"
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return file.is_file() and (loaded is None or Path(loaded).resolve() == file.resolve())


def _from_package(node: ast.ImportFrom) -> list[str]:
    """The same names from the files that define them; those that none of our files defines still from the package."""
    module = importlib.import_module(node.module)
    statements = []
    for alias in node.names:
        home = getattr(getattr(module, alias.name, None), "__module__", "").removeprefix(f"{__package__}.")
        is_file = home in OUR_FILES
        if not is_file and node.module.removeprefix(f"{__package__}.") in OUR_FILES:
            home, is_file = node.module.removeprefix(f"{__package__}."), True
        moved = ast.ImportFrom(home if is_file else node.module, [alias], int(is_file))
        statements.append(ast.unparse(moved))
    return statements


def check_travel(classes: Mapping[str, type]) -> None:
    """Warns, before anything is trained, if saved checkpoints would lack one of `classes`, or not be saved for it."""
    try:
        files_to_save(classes)
    except (NoFile, OSError, SyntaxError) as error:
        logger.warning_once(f"Saved checkpoints will lack the code of your classes: {error}")
    except CannotTravel as error:
        logger.warning_once(f"save_pretrained will refuse this model for the code of your classes: {error}")


def references(classes: Mapping[str, type]) -> dict[str, str]:
    """What `auto_map` of the configuration says of them: in which file each is."""
    try:
        return {field: f"{file_of(cls).stem}.{cls.__name__}" for field, cls in classes.items()}
    except CannotTravel:
        return {}


def save_classes(config, classes: Mapping[str, type], folder: str | Path) -> None:
    """Writes the files of `classes` into a saved checkpoint, and the one that imports them.

    Raises:
        CannotTravel, OSError, SyntaxError: if that cannot be; nothing is written then.
    """
    texts = files_to_save(classes)
    imports = [f"from .{file_of(cls).stem} import {cls.__name__}" for cls in classes.values()]
    entries = [f"    {getattr(config, field)!r}: {cls.__name__}," for field, cls in classes.items()]
    lines = ['"""Classes that travel with this checkpoint, by their names in the configuration."""', ""]
    lines += [*dict.fromkeys(imports), "", "", "CLASSES = {", *dict.fromkeys(entries), "}", ""]
    for name, text in {**texts, "shipped_classes.py": "\n".join(lines)}.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
