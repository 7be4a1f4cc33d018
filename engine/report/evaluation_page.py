"""report.html of an evaluation."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polarax.report.evaluation_table import rows_by_layer, rows_of_numbers, rows_of_texts
from polarax.report.page import Page, Section, last_part, pictures_section, reading_section, write_page
from polarax.report.plots.evaluation import CKA_CAPTION, ENTROPY_CAPTION, draw_evaluation_plots
from polarax.report.plots.gallery import captioned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTHING = "No text was given: the models only wrote."
_CAPTIONS = {"attention_entropy": ENTROPY_CAPTION, "cka": CKA_CAPTION}
_ELSEWHERE = ("reading", "texts", "attention", "cka", "numbers")  # what the page shows in sections of their own


def write_evaluation_report(
    content: Mapping[str, Any], folder: pathlib.Path, *, figures: "Mapping[str, Figure] | None" = None
) -> pathlib.Path:
    """Writes the page of an evaluation into its folder; returns its path.

    Args:
        content: What evaluation.json says.
        folder: Where to.
        figures: What `draw_evaluation_plots` returned.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    figures = draw_evaluation_plots(content) if figures is None else figures
    against = f" against {last_part(content, 'reference')}" if content["reference"] else ""
    has = content["numbers"] is not None
    sections = [reading_section(content["reading"], rows_of_numbers(content) if has else (), empty=_NOTHING)]
    sections += pictures_section(
        "inside-section", "Inside the model", "Inside the model", captioned(_CAPTIONS), figures
    )
    if has:
        layers = {"rows": rows_by_layer(content)}
        sections.append(Section("layers-section", "By layer", "By layer", "layers.html", layers))
    if content["texts"]:
        texts = {"rows": rows_of_texts(content)}
        sections.append(Section("texts-section", "What they write", "What they write", "texts.html", texts))
    page = Page(
        title=f"{last_part(content, 'model')}{against}",
        under=f"Evaluated on {content['text']['tokens']:,} tokens of {content['text']['path']}." if has else _NOTHING,
        sections=sections,
        description={name: value for name, value in content.items() if name not in _ELSEWHERE},
    )
    return write_page(page, folder)
