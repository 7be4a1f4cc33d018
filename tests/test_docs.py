"""What README.md, docs/ and the docstrings say is so: code runs; columns, flags and links exist."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from absl import flags

import polarax
from polarax.cli import COMMANDS
from polarax.findings.effects import thresholds
from polarax.findings.signature import Signature
from polarax.loaders import ROLES
from polarax.metrics import (
    BETWEEN,
    CERTIFICATE,
    CERTIFICATE_COLUMNS,
    CONTROL_COLUMNS,
    GROUPS,
    IDENTITY_COLUMNS,
    sampled_columns,
)
from polarax.report.plots.gallery import run_gallery
from polarax.report.table import table_by_role
from polarax.tracking.readings import METRICS, Options, names

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS = {
    *IDENTITY_COLUMNS,
    *CERTIFICATE_COLUMNS,
    *CONTROL_COLUMNS,
    *(c for group in GROUPS.values() for c in group),
    *BETWEEN,
    *CERTIFICATE,
}
ARRAYS = {"s_base", "s_post", "s_post_null", "s_post_null_std", "s_change", "cosines_left", "cosines_right"}
ARRAYS |= {"cosines_left_null", "cosines_right_null"}
ARRAYS |= {"rotation_left", "rotation_right", "rotation_difference"}
PLOTS = {picture.name for part in run_gallery() for picture in part.pictures}
TRACKED = {*names(Options(METRICS, spectrum=True)), "lora_a", "lora_b"}  # the latter are Flax's names
for _function in (polarax.Tracker, polarax.Tracker.plan):
    TRACKED |= set(inspect.signature(_function).parameters)
LARGEST_PICTURE = 150_000  # bytes

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
# As far as `_FLAG` takes them: of SLURM, gcloud and xpk.
_FLAGS_OF_OTHERS = set("accelerator cluster command cpus docker gpus job nodes ntasks num output time tpu".split())
_FLAGS_OF_OTHERS |= {"version", "worker", "workload", "zone"}

_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--([a-z_]+)")


def _relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in _FENCE.findall(page.read_text()) if found == language]


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


PAGES_WITH_PYTHON = [page for page in PAGES if _blocks(page, "python")]


def _save_bert(folder: Path, drift: float) -> None:
    """A checkpoint with the names of the demo's and tiny matrices, moved by about `drift`."""
    rng = np.random.default_rng(0)
    dense = ["attention.self.query", "attention.self.key", "attention.output.dense"]
    names = [f"encoder.layer.{layer}.{name}" for layer in range(2) for name in dense]
    shapes = {f"{name}.weight": (6, 6) for name in names} | {f"{name}.bias": (6,) for name in names}
    tensors = {
        name: (rng.normal(size=shape) + drift * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """What the pages take for granted: two checkpoints and the demo's run."""
    folder = tmp_path_factory.mktemp("docs")
    base, post = folder / "path/to/base", folder / "path/to/post"
    _save_bert(base, drift=0.0)
    _save_bert(post, drift=0.01)
    polarax.compare(base, post, out=folder / "runs/minilm", progress=False)
    return folder


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=_relative)
def test_python_in_a_page_runs_from_top_to_bottom(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    names: dict = {"__name__": "__main__"}
    for number, code in enumerate(_blocks(page, "python"), start=1):
        exec(compile(code, f"{_relative(page)} block {number}", "exec"), names)
    assert capsys.readouterr().out


def test_pages_with_python_are_found():
    assert {"README.md", "docs/run_directory.md"} <= set(map(_relative, PAGES_WITH_PYTHON))


def test_the_csv_reads_back_exactly_as_the_page_says(workplace, monkeypatch):
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
        pytest.skip("older pandas needs float_precision, newer pandas deprecates it")
    monkeypatch.chdir(workplace)
    names: dict = {}
    exec(_blocks(ROOT / "docs/run_directory.md", "python")[0], names)
    ours = polarax.Run.open("runs/minilm").frame()
    beside = {*IDENTITY_COLUMNS, *BETWEEN, *CERTIFICATE, *CERTIFICATE_COLUMNS, "control"}
    for column in COLUMNS - beside:
        np.testing.assert_array_equal(names["frame"][column], ours[column])


def _column_tables(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The heading above each table of columns, and the columns that the table has."""
    heading, columns, inside = "", [], False
    for line in [*_prose(page).splitlines(), ""]:
        if not line.startswith("|"):
            if inside:
                yield heading, columns
            columns, inside = [], False
            if line.startswith("#"):
                heading = line
            continue
        first = line.split("|")[1]
        if first.strip() == "column":
            inside = True
        elif inside:
            columns += _CODE.findall(first)


DEFINITIONS = ROOT / "docs/definitions.md"


@pytest.mark.parametrize("group", GROUPS)
def test_every_column_of_a_group_is_defined_under_its_heading(group):
    tables = [found for heading, found in _column_tables(DEFINITIONS) if f"(`{group}`)" in heading]
    assert [sorted(table) for table in tables] == [sorted(GROUPS[group])]


def test_no_other_column_is_defined():
    defined = [column for _, table in _column_tables(DEFINITIONS) for column in table]
    assert sorted(defined) == sorted(COLUMNS)


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_names_in_code_font_exist(page):
    """A column that is renamed leaves no trace of its old name."""
    known = COLUMNS | set(sampled_columns(GROUPS)) | ARRAYS | PLOTS | set(thresholds()) | set(Signature._fields)
    known |= set(ROLES) | set(_flags()) | TRACKED
    written = set(_CODE.findall(_prose(page)))
    assert not {word for word in written - known if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)}


def _flags() -> dict[str, set[str]]:
    """Every flag of the command line, with the commands that take it."""
    found: dict[str, set[str]] = {"verbosity": set(COMMANDS), "help": set(COMMANDS)}
    for command in COMMANDS:
        values = flags.FlagValues()
        importlib.import_module(f"polarax.commands.{command}").define_flags(values)
        for name in values:
            found.setdefault(name, set()).add(command)
            if values[name].boolean:
                found.setdefault(f"no{name}", set()).add(command)
    return found


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_flags_exist(page):
    named = set(_FLAG.findall(page.read_text()))
    known = set(_flags())
    if _relative(page).startswith("docs/benchmarks"):
        known |= set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / "benchmarks/options.py").read_text()))
    if _relative(page) == "docs/many_hosts.md":
        known |= _FLAGS_OF_OTHERS
    assert not named - known


def test_readme_names_every_flag():
    named = set(_FLAG.findall(README.read_text()))
    named |= {f"no{name}" for name in named} | {name.removeprefix("no") for name in named}
    assert not set(_flags()) - named


def test_the_output_in_the_readme_has_the_headings_of_today(workplace):
    table = table_by_role(polarax.Run.open(workplace / "runs/minilm").summary())
    printed, shown = ([line.split() for line in text.splitlines()] for text in (table, _blocks(README, "text")[0]))
    heading = printed[: next(place for place, words in enumerate(printed) if set("".join(words)) == {"-"})]
    assert any(shown[place : place + len(heading)] == heading for place in range(len(shown)))


def test_readme_names_every_command():
    text = README.read_text()
    assert not {command for command in COMMANDS if f"polarax {command}" not in text}


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(_prose(page)))
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_links_within_the_repository_resolve(page):
    for link in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link
        assert target.suffix != ".png" or target.stat().st_size < LARGEST_PICTURE, link


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=_relative)
def test_no_page_names_a_place_of_one_machine(page):
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root|mnt|Users)/\S*", page.read_text())


# Each by itself: installed from a checkout, the three are folders of which none is inside another.
PACKAGES = (polarax, polarax.kernels, polarax.loaders)
MODULES = sorted(
    {name for package in PACKAGES for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    | {package.__name__ for package in PACKAGES}
)


def test_modules_are_found():
    assert {"polarax.kernels.align", "polarax.loaders", "polarax.results.run"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    if name.endswith("__main__"):
        pytest.skip("runs the command line when imported")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
