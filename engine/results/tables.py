"""Tables of matrices as the texts that are in their files, and one that is laid over another."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from polarax.metrics.look import FULL, LOOK, with_look


class Table(NamedTuple):
    """A table as it is written: a text for each cell."""

    columns: tuple[str, ...]
    rows: list[list[str]]

    def under(self, columns: Sequence[str]) -> list[list[str]]:
        """Its rows under other columns; nothing where it has none of them."""
        if tuple(columns) == self.columns:
            return self.rows
        places = {column: place for place, column in enumerate(self.columns)}
        chosen = [places.get(column) for column in columns]
        return [["" if place is None else row[place] for place in chosen] for row in self.rows]


def read_table(path: pathlib.Path) -> Table:
    """The rows of a file that were written to their end: a killed process may leave a part of one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    header, *rows = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
    return Table(tuple(header), [row for row in rows if len(row) == len(header)])


def joint_columns(headers: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The columns of several tables, each once: those that only some have stand behind what they stand behind there."""
    first, *others = headers
    columns = list(first)
    for header in others:
        place = 0
        for column in header:
            if column in columns:
                place = columns.index(column) + 1
            else:
                columns.insert(place, column)
                place += 1
    return tuple(columns)


def laid_over(table: Table, full: Sequence[Table]) -> Table:
    """A first look whose rows are replaced by those of full analyses.

    Args:
        table: The first look; it may have been laid over before.
        full: Of two that have the same matrix, the later one counts.

    Returns:
        The table under the columns of all. Rows that the first look has not got to yet come last.
    """
    full = [one for one in full if one.rows]
    if not full:
        return table
    columns = joint_columns([table.columns or with_look(full[0].columns), *(one.columns for one in full)])
    rows = {row[0]: row for row in table.under(columns)}
    look = columns.index(LOOK) if LOOK in columns else None
    for one in full:
        for row in one.under(columns):
            if look is not None:
                row[look] = FULL
            rows[row[0]] = row
    return Table(columns, list(rows.values()))
