"""Imports run one way, wherever they stand in a file, and no modules import one another in a circle."""

from pathlib import Path

import pytest

from tests.imports import arrows, circles, imported, is_under, modules

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"polarax": "engine", "polarax.kernels": "kernels", "polarax.loaders": "loaders"}

# What a part of polarax may import besides itself, from the top of the house to its foundations. A part is a package
# or a module at the root, named without `polarax.`; a name with a dot allows that module alone.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"errors", "loaders"},  # and the modules of commands, by name
    "commands": {
        "comparison",
        "step_comparison",
        "editing",
        "measuring",
        "results",
        "report",
        "findings",
        "tracking",
        "evaluation",
        "reproduction",
        "hosts",
        "planning",
        "metrics",
        "errors",
        "kernels",
        "loaders",
    },
    "reproduction": {
        "editing",
        "evaluation",
        "measuring.sampled_controls",
        "results.files",
        "planning",
        "errors",
        "loaders",
    },
    "": {
        "comparison",
        "step_comparison",
        "editing",
        "evaluation",
        "results",
        "tracking",
        "errors",
        "kernels",
        "loaders",
    },  # the public API
    "editing": {"measuring", "hosts", "results", "report.table", "planning", "metrics", "errors", "kernels", "loaders"},
    "step_comparison": {"comparison", "measuring", "results", "planning", "metrics", "errors", "loaders"},
    "comparison": {"measuring", "hosts", "results", "planning", "metrics", "errors", "loaders"},
    "evaluation": {"results.files", "planning.devices", "planning.environment", "errors", "loaders"},
    "measuring": {"hosts", "results", "planning", "metrics", "errors", "kernels", "loaders"},
    "hosts": {"results.shelf", "results.directory", "errors", "loaders"},
    "results": {"findings", "planning", "metrics", "errors", "loaders"},
    "report": {"results.directory", "results.files", "findings", "metrics", "errors", "loaders"},
    "findings": {"metrics", "errors", "loaders"},
    "tracking": {"planning.selection", "metrics", "errors", "kernels", "loaders"},
    "planning": {"metrics", "errors", "kernels", "loaders"},
    "metrics": {"errors", "kernels"},
    "errors": {"loaders"},
    "kernels": set(),
    "loaders": set(),
}
# `run.plot()` is a facade: what shows a run imports what a run is, so it is imported when it is asked for (or named in
# an annotation). The modules of report that stand behind such a method are called notebook.
FACADE = ("results", "report")
# What is shown is annotated by its public name, `polarax.Run`, which nothing is imported for when it runs.
ANNOTATED = ("report", "")


def _modules(root: Path) -> dict[str, Path]:
    return modules({package: root / folder for package, folder in FOLDERS.items()})


def _part(module: str) -> str:
    """The package or root module that a module belongs to."""
    return [*module.split("."), ""][1]


def _is_facade(start: str, end: str, lazy: bool) -> bool:
    return lazy and (_part(start), _part(end)) == FACADE and end.rpartition(".")[2] == "notebook"


def _wrong_arrows(root: Path) -> list[str]:
    """Arrows against the one way, as 'importer -> imported'."""
    return [
        f"{start} -> {end}"
        for start, end, lazy in arrows(_modules(root))
        if _part(start) != _part(end)
        and not any(is_under(end, f"polarax.{allowed}") for allowed in MAY_IMPORT.get(_part(start), set()))
        and not _is_facade(start, end, lazy)
        and not (lazy and (_part(start), _part(end)) == ANNOTATED)
    ]


def _circles(root: Path) -> list[list[str]]:
    return circles([(start, end) for start, end, lazy in arrows(_modules(root)) if not _is_facade(start, end, lazy)])


def test_imports_run_one_way():
    wrong = _wrong_arrows(ROOT)
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_one_another_in_a_circle():
    found = _circles(ROOT)
    assert not found, "\n".join(map(str, found))


def test_every_part_has_a_place():
    assert {_part(module) for module in _modules(ROOT)} == set(MAY_IMPORT)


def test_the_table_itself_runs_one_way():
    assert circles([(part, name.partition(".")[0]) for part, below in MAY_IMPORT.items() for name in below]) == []


# Such a house is found out when it is built wrongly.


def _house(tmp_path: Path, **files: str) -> Path:
    """A repository with these modules, given as engine__planning__plan='import ...'."""
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text("")
    for name, source in files.items():
        path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


@pytest.mark.parametrize(
    ("home", "source", "wrong"),
    [
        ("kernels__svd", "import polarax", "polarax"),
        ("kernels__svd", "import jax, polarax.loaders.names as n", "polarax.loaders.names"),
        ("kernels__svd", "from polarax import loaders", "polarax.loaders"),
        ("kernels__svd", "from .. import loaders", "polarax.loaders"),
        ("kernels__svd", "from ..results.run import Run", "polarax.results.run"),
        ("kernels__svd", "def f():\n  from polarax.results.run import Run", "polarax.results.run"),
        ("kernels__svd", "importlib.import_module('polarax.loaders')", "polarax.loaders"),
        ("kernels__svd", "import_module('..loaders', __package__)", "polarax.loaders"),
        ("kernels__spectra__svd", "from ... import compare", "polarax"),
        ("loaders__names", "from ..kernels.svd import svd", "polarax.kernels"),
        ("engine__findings__effects", "from polarax.results import run", "polarax.results.run"),
        ("engine__findings__effects", "if TYPE_CHECKING:\n  from polarax.results import run", "polarax.results.run"),
        ("engine__report__page", "import polarax.results.run", "polarax.results.run"),
        ("engine__results__files", "from polarax.report import notebook", "polarax.report.notebook"),
        ("engine__results__files", "def f():\n  import polarax.report.page", "polarax.report.page"),
        ("engine__planning__plan", "def f():\n  import polarax.report.notebook", "polarax.report.notebook"),
        ("engine__comparison", "from polarax.commands import compare", "polarax.commands.compare"),
        ("engine__attic__box", "import polarax.errors", "polarax.errors"),
    ],
)
def test_wrong_arrows_are_found(home, source, wrong, tmp_path):
    there = dict.fromkeys(
        ["engine__results__run", "engine__report__page", "engine__report__notebook", "engine__errors"], ""
    )
    there |= dict.fromkeys(["engine__commands__compare", "loaders__names"], "")
    there |= {"engine__results____init__": "", "engine__report____init__": "", "engine__commands____init__": ""}
    root = _house(tmp_path, **there | {home: source})
    importer = next(name for name, path in _modules(root).items() if path.read_text() == source)
    assert _wrong_arrows(root) == [f"{importer} -> {wrong}"]


@pytest.mark.parametrize(
    ("home", "source"),
    [
        ("kernels__svd", "from . import polar\nfrom polarax.kernels.polar import f\nimport jax"),
        ("kernels__svd", "import polaraxis.loaders"),
        ("engine__comparison", "from polarax.loaders import open_checkpoint"),
        ("engine__results__run", "def f():\n  from polarax.report.notebook import show"),
        ("engine__results__run", "def f():\n  from polarax.report.notebook import show"),
        ("engine__results__run", "if TYPE_CHECKING:\n  from polarax.report.notebook import RunPlots"),
        ("engine__cli", "importlib.import_module(f'polarax.commands.{command}')"),
    ],
)
def test_right_arrows_are_none_of_them(home, source, tmp_path):
    names = [
        "kernels__polar",
        "engine__report____init__",
        "engine__report__notebook",
        "engine__report__posts__notebook",
    ]
    root = _house(tmp_path, **dict.fromkeys(names, "") | {home: source})
    assert _wrong_arrows(root) == []


@pytest.mark.parametrize(
    "source",
    ["from polarax.loaders import b", "def f():\n  import polarax.loaders.b", "if TYPE_CHECKING:\n  from . import b"],
)
def test_circles_are_found(source, tmp_path):
    root = _house(tmp_path, loaders__a=source, loaders__b="import polarax.loaders.c", loaders__c="from .a import x")
    assert _circles(root) == [["polarax.loaders.a", "polarax.loaders.b", "polarax.loaders.c"]]


def test_the_facade_closes_no_circle(tmp_path):
    files = {
        "engine__results__run": "def plot():\n  from polarax.report import notebook",
        "engine__report____init__": "",
        "engine__report__notebook": "from polarax.results.run import Run",
    }
    assert _circles(_house(tmp_path, **files)) == []


# Files by their folders' names.


def _by_folder_name(source: str, package: str) -> list[str]:
    """Imports of `engine`, `kernels` or `loaders` as the folders are named, not as installed."""
    return [name for _, name, _ in imported(source, package) if name.partition(".")[0] in FOLDERS.values()]


def test_nobody_imports_by_folder_name():
    """Both would be there, as different modules: absl then finds flags defined twice."""
    files = dict(_modules(ROOT))
    for folder in ("benchmarks", "docs", "tests"):
        files |= modules({folder: ROOT / folder})
    found = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = _by_folder_name(path.read_text(encoding="utf-8"), package)
        found |= {module: names} if names else {}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import engine", ["engine"]),
        ("import numpy, kernels.svd", ["kernels.svd"]),
        ("from loaders import names", ["loaders.names"]),
        ("importlib.import_module('engine.cli')", ["engine.cli"]),
        ("import polarax.kernels\nfrom . import kernels\nfrom enginex import engine", []),
    ],
)
def test_folder_names_are_seen(source, names):
    assert _by_folder_name(source, "tests") == names
