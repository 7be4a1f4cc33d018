"""What a Python file imports, read from its source without importing it."""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """One import statement's one name."""

    line: int
    name: str  # absolute and dotted; `from x import y` gives x.y, for y may be a module
    lazy: bool  # inside a function, or for types alone: not when the module is imported


def imported(source: str, package: str) -> list[Import]:
    """Everything a module imports, at the top, inside functions and under TYPE_CHECKING.

    Relative imports are resolved against `package`, the package that the module is in. Constant names given to
    `import_module` and `__import__` count.
    """
    return list(_visit(ast.parse(source), package, lazy=False))


def _visit(node: ast.AST, package: str, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(node.lineno, alias.name, lazy) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            module = importlib.util.resolve_name("." * node.level + module, package)
        yield from (Import(node.lineno, f"{module}.{alias.name}", lazy) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        name = node.args[0].value
        if called in {"import_module", "__import__"} and isinstance(name, str):
            yield Import(node.lineno, importlib.util.resolve_name(name, package), lazy)
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types(node)
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, package, lazy)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "attr", getattr(node.test, "id", None)) == "TYPE_CHECKING"


def is_under(name: str, package: str) -> bool:
    """Whether a dotted name is a package or inside it."""
    return name == package or name.startswith(package + ".")


def modules(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Dotted name -> file of every module in the folders, given as package -> folder; `x/__init__.py` is x."""
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def arrows(files: Mapping[str, Path]) -> list[tuple[str, str, bool]]:
    """Who imports whom among modules: (importer, imported, lazily).

    What is no module of its own belongs to the one it is imported from: `from x import name` is an arrow to x.
    """
    found = set()
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for _, name, lazy in imported(path.read_text(encoding="utf-8"), package):
            target = name
            while target and target not in files:
                target = target.rpartition(".")[0]
            if target and target != module:
                found.add((module, target, lazy))
    return sorted(found)


def circles(pairs: list[tuple[str, str]]) -> list[list[str]]:
    """The strongly connected components of more than one node, by Tarjan's algorithm (1972)."""
    graph: dict[str, list[str]] = {}
    for start, end in pairs:
        graph.setdefault(start, []).append(end)
        graph.setdefault(end, [])
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            place = stack.index(node)
            component = stack[place:]
            del stack[place:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)
