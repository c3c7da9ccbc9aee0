"""Joins the modules that some classes need into one Python file, in reading order.

What the classes need is found by following names: only definitions that can be reached from them are kept,
whatever the files they are in. Nothing is renamed, so names must be unique among joined modules; a clash is
an error that says where.
"""

import ast
import builtins
import functools
import hashlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.checkpoint_code import CHECKSUM


PACKAGE = __package__.partition(".")[0]
LINE_LENGTH = 110
# Imports that transformers follows; it finds them in docstrings, too.
LOADED = re.compile(r"^\s*from\s+\.(\S+)\s+import|^\s*import\s+\.(\S+)\s*$", re.MULTILINE)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Name and the module that defines it.
Root = tuple[str, str]


class BundleError(ValueError):
    """Modules that cannot be joined; names file, line and remedy."""


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of a module, with the comments above it.

    Attributes:
        module: its source file.
        node: its syntax tree.
        text: its lines, without imports from joined modules.
        binds: names that it defines.
        uses: names that it reads, in order.
        has_effect: True if it does more than define names; it is then kept whenever its module is.
    """

    module: "Module"
    node: ast.stmt
    text: str
    binds: frozenset[str]
    uses: tuple[str, ...]
    has_effect: bool


class Module:
    """A source file of the package.

    Attributes:
        statements: all but imports, `__all__` and docstrings.
        definitions: the statement that binds each name.
        internal: by the name they bind, imports from the package: name and module.
        external: by the name they bind, other imports: module, name in it or None for the whole, and alias.
        needed_first: modules of the package that are imported at the beginning, not inside functions.
    """

    def __init__(self, name: str):
        self.name = name
        spec = importlib.util.find_spec(name)
        self.path = Path(spec.origin)
        self.is_package = spec.submodule_search_locations is not None
        self.lines = self.path.read_text(encoding="utf-8").splitlines()
        tree = ast.parse("\n".join(self.lines))
        self.docstring = ast.get_docstring(tree) or self.path.stem
        self.internal: dict[str, Root] = {}
        self.external: dict[str, list[tuple[str, str | None, str | None]]] = {}
        self.needed_first: set[str] = set()
        self.statements: list[Statement] = []
        end = 0
        for node in tree.body:
            start = min(one.lineno for one in (node, *getattr(node, "decorator_list", ()))) - 1
            if start < end:
                raise self.error(node, "put each statement on a line of its own")
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._read_import(node)
            elif not (_is_docstring(node) or _binds(node) == {"__all__"} or self._only_for_types(node)):
                self.statements.append(self._read_statement(node, end))
            end = node.end_lineno
        self.definitions = {name: one for one in self.statements for name in one.binds}

    def error(self, node: ast.AST, reason: str) -> BundleError:
        return BundleError(f"{self.path}, line {node.lineno}: {reason}.")

    def _target(self, node: ast.Import | ast.ImportFrom) -> str | None:
        """Module of the package that a statement imports from; None for others."""
        if isinstance(node, ast.Import):
            if any(alias.name.partition(".")[0] == PACKAGE for alias in node.names):
                raise self.error(node, "write `from .file import name`, so that files can be joined")
            return None
        name = node.module or ""
        if node.level:
            package = self.name if self.is_package else self.name.rpartition(".")[0]
            name = importlib.util.resolve_name("." * node.level + name, package)
        return name if name.partition(".")[0] == PACKAGE else None

    def _read_import(self, node: ast.Import | ast.ImportFrom, nested: bool = False) -> None:
        target = self._target(node)
        if target is not None:
            for alias in node.names:
                if alias.asname not in (None, alias.name) or alias.name == "*":
                    raise self.error(node, "import by the name of the definition, without `as` and `*`")
                self.internal[alias.name] = (alias.name, target)
            if not nested:
                self.needed_first.add(target)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self.external.setdefault(bound, []).append((alias.name, None, alias.asname))
        elif node.module == "__future__":
            raise self.error(node, "`from __future__` would hold for every joined file; do without")
        else:
            for alias in node.names:
                entry = (node.module, alias.name, alias.asname)
                self.external.setdefault(alias.asname or alias.name, []).append(entry)

    def _read_statement(self, node: ast.stmt, end: int) -> Statement:
        """Reads a statement that begins after line `end`."""
        lines = dict(enumerate(self.lines[end : node.end_lineno], end + 1))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom) and self._target(inner) is not None:
                self._read_import(inner, nested=True)
                for number in range(inner.lineno, inner.end_lineno + 1):
                    del lines[number]
        for inner in ast.walk(node):
            body = getattr(inner, "body", None)
            if isinstance(body, list) and all(isinstance(one, ast.ImportFrom) for one in body):
                raise self.error(inner, "a block of nothing but imports cannot be joined")
        names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
        names += [
            name
            for text in _string_annotations(node)
            for name in ast.walk(text)
            if isinstance(name, ast.Name)
        ]
        names.sort(key=lambda name: (name.lineno, name.col_offset))
        defines = isinstance(node, DEFINITIONS)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defines = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        text = "\n".join(lines.values())
        text = "\n" * text.startswith("\n") + text.strip("\n")
        uses = tuple(dict.fromkeys(name.id for name in names))
        return Statement(self, node, text, frozenset(_binds(node)), uses, has_effect=not defines)

    def _only_for_types(self, node: ast.stmt) -> bool:
        """Returns whether a statement is `if TYPE_CHECKING:` with imports from joined modules alone."""
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            return False
        return all(isinstance(one, ast.ImportFrom) and self._target(one) is not None for one in node.body)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _binds(node: ast.AST) -> set[str]:
    """Names that a statement binds in its module."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return set()
    return set().union(*(_binds(child) for child in ast.iter_child_nodes(node)))


def _string_annotations(node: ast.AST) -> Iterator[ast.AST]:
    for inner in ast.walk(node):
        for annotation in (getattr(inner, "annotation", None), getattr(inner, "returns", None)):
            for part in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    try:
                        yield ast.parse(part.value, mode="eval")
                    except SyntaxError:  # text, such as of `Literal`
                        continue


read_module = functools.cache(Module)


def resolve(name: str, module: str) -> Statement | None:
    """Finds the definition of a name that a module defines or imports from the package; None for other
    names."""
    source = read_module(module)
    if name in source.definitions:
        return source.definitions[name]
    if name not in source.internal:
        return None
    found = resolve(*source.internal[name])
    if found is None:
        raise BundleError(f"{source.path} imports {name}, which {source.internal[name][1]} does not define.")
    return found


def reachable_modules(roots: Sequence[Root]) -> list[str]:
    """Lists the modules that those of `roots` import, directly or not."""
    found, waiting = [], [module for _, module in roots]
    while waiting:
        module = waiting.pop(0)
        if module not in found:
            found.append(module)
            waiting += [target for _, target in read_module(module).internal.values()]
    return found


def reachable_statements(roots: Sequence[Root]) -> dict[str, list[Statement]]:
    """Finds the statements that `roots` need, in order, by module."""
    found: set[Statement] = set()
    modules: dict[str, None] = {}
    waiting = []
    for name, module in roots:
        statement = resolve(name, module)
        if statement is None:
            raise BundleError(f"{module} does not define {name}.")
        waiting.append(statement)
    while waiting:
        statement = waiting.pop(0)
        if statement in found:
            continue
        found.add(statement)
        module = statement.module
        if module.name not in modules:
            modules[module.name] = None
            waiting += [one for one in module.statements if one.has_effect]
        needed = [resolve(name, module.name) for name in statement.uses]
        waiting += [one for one in needed if one is not None]
    return {name: [one for one in read_module(name).statements if one in found] for name in modules}


def in_reading_order(kept: Mapping[str, list[Statement]], roots: Sequence[Root]) -> list[str]:
    """Orders modules: each after those that it imports, which follow each other as it uses them."""
    order: dict[str, None] = {}
    begun: set[str] = set()

    def visit(name: str) -> None:
        if name in begun:
            return
        begun.add(name)
        module = read_module(name)
        used = [module.internal[use] for one in kept[name] for use in one.uses if use in module.internal]
        for imported in used:
            if imported[1] in module.needed_first:
                visit(resolve(*imported).module.name)
        order[name] = None
        for imported in used:  # inside functions, if it was not visited above
            visit(resolve(*imported).module.name)

    for root in roots:
        visit(resolve(*root).module.name)
    return list(order)


def check_names(statements: Sequence[Statement]) -> None:
    """Checks that each name means one thing in all joined modules.

    Raises:
        BundleError: if not; names both places.
    """
    meanings: dict[str, tuple[str, str]] = {}

    def bind(name: str, meaning: str, place: str) -> None:
        known, where = meanings.setdefault(name, (meaning, place))
        if known != meaning:
            raise BundleError(
                f"{name} means one thing in {where} and another in {place}. Rename one of them."
            )
        if hasattr(builtins, name):
            raise BundleError(f"{name} in {place} hides a builtin from every other file. Rename it.")

    for statement in statements:
        module = statement.module
        place = f"{module.path}, line {statement.node.lineno}"
        for name in statement.binds:
            bind(name, _meaning(statement), place)
        for name in statement.uses:
            for source, attribute, _ in module.external.get(name, ()):
                whole = attribute is None and name == source.partition(".")[0]
                bind(
                    name, f"import {name}" if whole else f"from {source} import {attribute}", str(module.path)
                )


def _meaning(statement: Statement) -> str:
    """Describes what a statement defines; equal assignments, such as of a logger, define one thing."""
    if isinstance(statement.node, ast.Assign | ast.AnnAssign):
        return ast.dump(statement.node)
    return f"{statement.module.name}:{statement.node.lineno}"


def join_imports(statements: Sequence[Statement]) -> str:
    """Writes the imports of other packages that statements use, the standard library's first."""
    modules: set[tuple[str, str | None]] = set()
    names: dict[str, set[str]] = {}
    for statement in statements:
        for name in statement.uses:
            for source, attribute, alias in statement.module.external.get(name, ()):
                if attribute is None:
                    modules.add((source, alias))
                else:
                    names.setdefault(source, set()).add(f"{attribute} as {alias}" if alias else attribute)
    groups: dict[bool, list[str]] = {True: [], False: []}
    for source, alias in sorted(modules, key=lambda one: (one[0], one[1] or "")):
        line = f"import {source} as {alias}" if alias else f"import {source}"
        groups[source.partition(".")[0] in sys.stdlib_module_names].append(line)
    for source, attributes in sorted(names.items()):
        line = f"from {source} import {', '.join(sorted(attributes))}"
        if len(line) > LINE_LENGTH:
            line = f"from {source} import (\n    " + ",\n    ".join(sorted(attributes)) + ",\n)"
        groups[source.partition(".")[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def bundle(
    roots: Sequence[Root],
    header: str,
    replaced: Mapping[str, str] | None = None,
) -> str:
    """Writes one file with everything that `roots` need.

    Args:
        roots: names of classes, each with a module that defines or imports it.
        header: beginning of the file's docstring, before its table of contents.
        replaced: functions by their names, with other code for them.

    Raises:
        BundleError: if modules cannot be joined.
    """
    replaced = dict(replaced or {})
    kept = reachable_statements(roots)
    order = in_reading_order(kept, roots)
    statements = [one for name in order for one in kept[name]]
    check_names(statements)
    sections, written = [], set()
    for number, name in enumerate(order, 1):
        module, parts, before = read_module(name), [], None
        for statement in kept[name]:
            text = statement.text
            for bound in statement.binds & replaced.keys():
                text = replaced.pop(bound)
            if isinstance(statement.node, ast.Assign) and _meaning(statement) in written:
                continue
            written.add(_meaning(statement))
            if not parts or isinstance(statement.node, DEFINITIONS) or isinstance(before, DEFINITIONS):
                text = "\n\n" + text.lstrip("\n")
            parts.append(text)
            before = statement.node
        if parts:
            title = f"# ==== {number}. {_short_name(module)} ".ljust(LINE_LENGTH, "=")
            comment = "\n".join(f"# {line}".rstrip() for line in module.docstring.splitlines())
            sections.append((module, "\n".join([title, comment, *parts])))
    if replaced:
        raise BundleError(f"There is no {sorted(replaced)} to replace.")
    head = f'"""{header.strip()}\n\nContents, by line:\n'
    body = '"""\n\n' + join_imports(statements) + "\n"
    # A line of the contents for each section, so that line numbers are known before they are written.
    line = len(head.splitlines()) + len(sections) + len(body.splitlines()) + 3
    contents = []
    width = max(len(_short_name(module)) for module, _ in sections)
    for module, text in sections:
        summary = re.split(r"(?<=\.)\s", module.docstring)[0].replace("\n", " ")
        summary = textwrap.shorten(summary, LINE_LENGTH - width - 10, placeholder=" ...")
        contents.append(f"{line:6}  {_short_name(module):{width}}  {summary}")
        line += len(text.splitlines()) + 2
    text = head + "\n".join(contents) + "\n" + body + "".join(f"\n\n{text}\n" for _, text in sections) + "\n"
    return f"{text}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _short_name(module: Module) -> str:
    """Path of a module below the package."""
    return module.name.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"
