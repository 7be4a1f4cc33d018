"""report.html of several posts: side by side on one self-contained page, which links to the page of each."""

import pathlib
from typing import TYPE_CHECKING

from polarax.report.page import Drawing, flat, last_part, render_template
from polarax.report.plots.style import to_svg
from polarax.report.posts.plots import draw_posts_plots
from polarax.report.posts.table import rows_of_posts
from polarax.report.table_data import table_data
from polarax.results.run_directory import BETWEEN_FOLDER, REPORT_FILE, replacing, writing

if TYPE_CHECKING:
    from polarax.results.runs import Runs

_SKIPPED_ROWS = 1000  # listed on the page; skipped.csv has them all


def write_posts_report(runs: "Runs") -> pathlib.Path:
    """Writes the page of several posts, finished or not, into their folder; returns its path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    path = runs.path / REPORT_FILE
    html = render_posts_report(runs)
    with writing(path), replacing(path, mode="w", encoding="utf-8", errors="replace") as file:
        file.write(html)
    return path


def render_posts_report(runs: "Runs") -> str:
    """The page's text. Errors as for `write_posts_report`."""
    summary, skipped = runs.summary(), runs.skipped()
    rows, notes = rows_of_posts(summary["posts"])
    posts = [
        {
            "label": label,
            "link": f"{label}/{REPORT_FILE}",
            "measured": one["matrices"],
            "skipped": sum(one["skipped"].values()),
        }
        for label, one in summary["posts"].items()
    ]
    between = [
        {"label": " to ".join(pair), "link": f"{BETWEEN_FOLDER}/{'/'.join(pair)}/{REPORT_FILE}", "measured": measured}
        for pair in runs.pairs
        if (measured := summary["between"].get(" to ".join(pair), {}).get("matrices"))
    ]
    return render_template(
        "posts.html",
        title=f"{last_part(runs.description, 'base')} → {', '.join(runs.labels)}",
        run=runs.description,
        finished=runs.finished,
        posts=posts,
        between=between,
        reading=summary["reading"],
        by_role=rows,
        notes=notes,
        plots={name: Drawing(to_svg(figure, name, themed=True)) for name, figure in draw_posts_plots(runs).items()},
        skipped=skipped.head(_SKIPPED_ROWS).to_dict("records"),
        skipped_count=len(skipped),
        facts=flat(runs.description),
        table=table_data(runs.frame()),
        grouped_by="post",
    )
