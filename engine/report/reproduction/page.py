"""report.html of the experiments."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polarax.report.page import Page, Section, last_part, pictures_section, reading_section, write_page
from polarax.report.plots.gallery import captioned
from polarax.report.reproduction.pictures import CAPTIONS, draw_reproduction_plots
from polarax.report.reproduction.table import rows_of_temperature, rows_of_text, temperature_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FACTS = ("base", "post", "settings", "selection", "environment", "started", "seconds")


def write_reproduction_report(
    content: Mapping[str, Any], folder: pathlib.Path, *, figures: "Mapping[str, Figure] | None" = None
) -> pathlib.Path:
    """Writes the page of a reproduction into its folder; returns its path.

    Args:
        content: What reproduction.json says.
        folder: Where to.
        figures: What `draw_reproduction_plots` returned.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    figures = draw_reproduction_plots(content) if figures is None else figures
    sections = [reading_section(content["reading"])]
    sections += pictures_section("pictures-section", "What changes do", "What changes do", captioned(CAPTIONS), figures)
    for number, text in enumerate(content["texts"]):
        rows = {"rows": rows_of_text(content, text["label"])}
        sections.append(Section(f"text-{number}-section", text["label"], text["label"], "layers.html", rows))
    if content["temperature"]["rows"]:
        rows = {"rows": rows_of_temperature(content)}
        sections.append(Section("temperature-section", temperature_title(content), "Temperature", "layers.html", rows))
    tokens = " and ".join(f"{text['tokens']:,} tokens of {text['label']}" for text in content["texts"])
    page = Page(
        title=f"{last_part(content, 'base')} to {last_part(content, 'post')}: every edit beside a random change",
        under=f"On {tokens}.",
        sections=sections,
        description={name: _without_texts(content[name]) for name in _FACTS},
    )
    return write_page(page, folder)


def _without_texts(value: Any) -> Any:
    return {name: part for name, part in value.items() if name != "texts"} if isinstance(value, Mapping) else value
