"""The table by role of several posts: for each role a line for each post."""

from collections.abc import Mapping

from polarax.loaders import ROLES
from polarax.report.table import align_rows, rows_by_role


def table_of_posts(summary: Mapping) -> str:
    """The table of `Runs.summary`, as `table_by_role` has it for one post."""
    rows, notes = rows_of_posts(summary["posts"])
    return align_rows(rows, notes, text_columns=2)


def rows_of_posts(posts: Mapping[str, Mapping]) -> tuple[list[list[str]], list[str]]:
    """The cells of `table_of_posts`, headings first, and the notes below it.

    Args:
        posts: Label -> `Run.summary()`.
    """
    tables = {label: rows_by_role(summary) for label, summary in posts.items()}
    headers = [rows[0] for (rows, _) in tables.values()]
    if not headers:
        return [["role", "post", "matrices"]], []
    header = max(headers, key=len)
    of_post = {
        label: {row[0]: row[1:] for row in rows[1:]}
        for label, (rows, _) in tables.items()
        if _metrics(rows[0]) == _metrics(header)
    }
    lines = [[role, label, *cells[role]] for role in ROLES for label, cells in of_post.items() if role in cells]
    notes = dict.fromkeys(note for _, found in tables.values() for note in found)
    return [[header[0], "post", *header[1:]], *lines], list(notes)


def _metrics(header):
    """Headings without what is said of controls: of a post of which nothing could be judged that is less."""
    return [heading.partition(" (")[0] for heading in header]
