"""report.html of several posts: side by side on one page, which links to the page of each."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarax.report.page import (
    Page,
    closer_of,
    last_part,
    pictures_section,
    reading_section,
    render_page,
    skipped_section,
    write_page,
)
from polarax.report.plots.gallery import draw_posts_plots, pairs_gallery, posts_gallery
from polarax.report.posts_table import rows_of_posts
from polarax.results.directory import BETWEEN_FOLDER, REPORT_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Runs

_SIDE_BY_SIDE = (
    "A line for each post, in the colour of its own control: what a random change of that post's size would show, "
    "three standard deviations to either side."
)


def write_posts_report(runs: "Runs", *, figures: "Mapping[str, Figure] | None" = None) -> pathlib.Path:
    """Writes the page of several posts, finished or not, into their folder; returns its path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    return write_page(posts_page(runs, figures), runs.path)


def render_posts_report(runs: "Runs") -> str:
    """The page's text. Errors as for `write_posts_report`."""
    return render_page(posts_page(runs))


def posts_page(runs: "Runs", figures: "Mapping[str, Figure] | None" = None) -> Page:
    """What the page says. Errors as for `write_posts_report`."""
    summary, skipped = runs.summary(), runs.skipped()
    figures = draw_posts_plots(runs) if figures is None else figures
    rows, notes = rows_of_posts(summary["posts"])
    counted = "; ".join(
        f"{label}: {one['matrices']} matrices, {sum(one['skipped'].values())} tensors skipped"
        for label, one in summary["posts"].items()
    )
    posts = [{"label": label, "link": f"{label}/{REPORT_FILE}"} for label in summary["posts"]]
    between = [
        {
            "label": f"{' to '.join(pair)}: {measured} matrices",
            "link": f"{BETWEEN_FOLDER}/{'/'.join(pair)}/{REPORT_FILE}",
        }
        for pair in runs.pairs
        if (measured := summary["between"].get(" to ".join(pair), {}).get("matrices"))
    ]
    sections = [
        reading_section(summary["reading"], rows, notes, text_columns=2, closer=closer_of(runs)),
        *pictures_section(
            "posts-section",
            "Side by side",
            "Side by side",
            posts_gallery(),
            figures,
            intro=_SIDE_BY_SIDE,
            links=posts,
        ),
    ]
    if between:
        sections += pictures_section(
            "between-section",
            "Post against post",
            "Post against post",
            pairs_gallery(),
            figures,
            links=between,
            note="between.csv has every column of every two posts.",
        )
    return Page(
        title=f"{last_part(runs.description, 'base')} → {', '.join(runs.labels)}",
        under=f"{counted}." if counted else "",
        account=runs.account(),
        finished=runs.finished,
        sections=[*sections, skipped_section(skipped)],
        frame=runs.frame(),
        grouped_by="post",
        description=runs.description,
    )
