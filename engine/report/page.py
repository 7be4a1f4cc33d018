"""Pages: self-contained HTML for a person who would rather look than read.

A page is a list of sections; a section is a title and what a template makes of its content. Names, dtypes and reasons
come from checkpoints and are untrusted: templates escape every text, data goes to the script as escaped JSON, and the
page forbids itself (by its content security policy) the network and any script but its own.
"""

import base64
import hashlib
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from polarax.errors import UsageError
from polarax.loaders import short_name
from polarax.report.plots.gallery import Picture
from polarax.report.plots.style import printable, to_svg
from polarax.report.table_data import script_json, table_data
from polarax.results.directory import REPORT_FILE
from polarax.results.files import replacing, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run, Runs
    from polarax.findings.closer import Closer

NOTHING_YET = "No matrix has been measured yet."
_SKIPPED_ROWS = 1000  # listed on a page; skipped.csv has them all
_LONGEST_CELL = 300  # characters of a name or a reason that are shown


class Drawing(str):
    """SVG that was made here: it may stand in a page as it is."""

    def __html__(self) -> str:
        return self


class Section(NamedTuple):
    """One part of a page."""

    id: str
    title: str
    link: str  # its name among the links at the top
    template: str
    content: Mapping[str, Any]


class Page(NamedTuple):
    """What a page says."""

    title: str
    under: str  # one line below the title
    sections: Sequence[Section]
    description: Mapping[str, Any]  # run.json
    account: Sequence[str] = ()  # how much of either model was compared
    finished: bool = True
    frame: pd.DataFrame | None = None  # of the table of all matrices; None for a page that is not about matrices
    grouped_by: str = ""  # a column of it that can be chosen from; "" for none


def write_page(page: Page, path: pathlib.Path) -> pathlib.Path:
    """Writes a page into the folder of a run, or to another path; returns the file.

    Raises:
        UsageError: jinja2 is not installed.
        RunError: The file cannot be written.
    """
    path = path / REPORT_FILE if path.is_dir() else path
    html = render_page(page)
    with writing(path), replacing(path, mode="w", encoding="utf-8", errors="replace") as file:
        file.write(html)
    return path


def render_page(page: Page) -> str:
    """The text of a page.

    Raises:
        UsageError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("The report needs jinja2: pip install 'polarax[report]'.") from error
    folder = importlib.resources.files("polarax.report") / "templates"
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(files),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = Section("how-section", "How it was run", "How it was run", "facts.html", {"facts": flat(page.description)})
    sections, data, script = [*page.sections, facts], "{}", ""
    if page.frame is not None:
        table = Section("table-section", "All matrices", "All matrices", "table.html", {"grouped_by": page.grouped_by})
        sections.insert(-2, table)  # before what was skipped
        data, script = script_json(table_data(page.frame)), files["report.js"]
    return environment.get_template("page.html").render(
        page=page,
        version=((page.description.get("environment") or {}).get("versions") or {}).get("polarax", ""),
        started=page.description.get("started"),
        sections=sections,
        table=Drawing(data),
        style=Drawing(files["report.css"]),
        script=Drawing(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def reading_section(
    sentences: Sequence[str],
    rows: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    *,
    thresholds: Mapping[str, float] | None = None,
    empty: str = NOTHING_YET,
    text_columns: int = 1,
    closer: "Closer | None" = None,
) -> Section:
    """The sentences, what they rest on, which matrices to look closer at, and the table by role."""
    content = {
        "sentences": sentences,
        "empty": empty,
        "thresholds": thresholds or {},
        "numbers": rows if len(rows) > 1 else (),
        "notes": notes,
        "text_columns": text_columns,
        "closer": closer,
    }
    return Section("reading", "Reading", "Reading", "reading.html", content)


def closer_of(run: "Run | Runs") -> "Closer | None":
    """Which matrices of a first look are to be looked at closer; None of any other run."""
    return run.closer() if run.first_look else None


def pictures_section(
    id: str,
    title: str,
    link: str,
    pictures: Iterable[Picture],
    figures: "Mapping[str, Figure]",
    *,
    intro: str = "",
    note: str = "",
    links: Sequence[Mapping[str, Any]] = (),
) -> list[Section]:
    """Pictures with a sentence below each; no section where there is none of them, nor a link."""
    drawn = [
        {"name": picture.name, "svg": svg_of(figures[picture.name], picture.name), "caption": picture.caption}
        for picture in pictures
        if picture.name in figures
    ]
    content = {"intro": intro, "pictures": drawn, "note": note, "links": links}
    return [Section(id, title, link, "pictures.html", content)] if drawn or links else []


def skipped_section(
    skipped: pd.DataFrame, *, reasons: Mapping[str, int] | None = None, left_out: Mapping[Any, str] | None = None
) -> Section:
    """What was not compared.

    Args:
        skipped: One row for each tensor.
        reasons: How many for each reason, in front of the table.
        left_out: Steps that were left out as a whole, with the reason.
    """
    content = {
        "columns": list(skipped.columns),
        "rows": [[_cell(cell) for cell in row] for row in skipped.head(_SKIPPED_ROWS).to_numpy().tolist()],
        "count": len(skipped),
        "reasons": reasons or {},
        "left_out": left_out or {},
    }
    return Section("skipped-section", "Skipped", "Skipped", "skipped.html", content)


def _cell(cell: Any) -> Any:
    return short_name(cell, _LONGEST_CELL) if isinstance(cell, str) and len(cell) > _LONGEST_CELL else cell


def svg_of(figure: "Figure", name: str) -> Drawing:
    """A picture in the colours of the page; its name tells its ids from those of others."""
    return Drawing(to_svg(figure, name, themed=True))


def last_part(description: Mapping, side: str) -> str:
    """The end of a location: what a person calls the checkpoint."""
    location = str((description.get(side) or {}).get("location") or side)
    folder = location.partition("?***")[0].rstrip("/")
    return printable(folder.rpartition("/")[2] or location)


def flat(content: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of every leaf of run.json."""
    if isinstance(content, Mapping):
        return [leaf for key, value in content.items() for leaf in flat(value, f"{name}.{key}" if name else str(key))]
    if isinstance(content, list):
        content = ", ".join(map(str, content))
    return [(name, "–" if content in (None, "") else str(content))]
