"""Words of a reading: names of matrices and roles, counts, numbers."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from polarax.loaders import ROLES, short_name


def by_role(rows: pd.DataFrame, among: pd.DataFrame | None = None, *, whole: str = "") -> str:
    """The roles of some rows, such as "q, k (5 of 6)", with how many of theirs where that is not all.

    Args:
        rows: They.
        among: Rows of which they are some; themselves if not given.
        whole: Where they are all of these, how many that is stands behind this word.
    """
    among = rows if among is None else among
    counts, totals = rows["role"].value_counts(), among["role"].value_counts()
    parts = [
        f"{role} ({counts[role]} of {totals[role]})" if counts[role] < totals[role] else f"{role}"
        for role in in_order(counts.index)
    ]
    if whole and len(rows) == len(among):
        return f"{', '.join(parts)} ({whole}{len(rows)})"
    return ", ".join(parts)


def in_order(roles: Iterable[str]) -> list[str]:
    """Roles as they are displayed."""
    return sorted(roles, key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))


def possessive(row: pd.Series) -> str:
    """The name of a matrix in a sentence: "layer 5's o", "embed", or its name where that is not enough."""
    if row["role"] == "other" or pd.isna(row["layer"]):
        return short_name(matrix_label(row))
    expert = "" if pd.isna(row["expert"]) else f" of expert {row['expert']}"
    return f"layer {row['layer']}'s {row['role']}{expert}"


def matrix_label(row: pd.Series) -> str:
    """The name of a matrix in a picture: "layer 5 o", or its name where that is not enough."""
    if row["role"] == "other":
        return row["name"]
    if pd.isna(row["layer"]):
        return row["role"]
    expert = "" if pd.isna(row["expert"]) else f" expert {row['expert']}"
    return f"layer {row['layer']} {row['role']}{expert}"


def plain(number: float, digits: int = 2) -> str:
    """A number with so many digits that count, and no power of ten.

    Example:
        >>> plain(0.0000123), plain(1234.5), plain(0.3)
        ('0.000012', '1200', '0.3')
    """
    if not np.isfinite(number):
        return str(number)
    return np.format_float_positional(float(f"{number:.{digits}g}"), trim="-")


def percent(share: float, sign: str = "", digits: int = 2) -> str:
    """A share in percent; with the sign "+" also that of positive ones.

    Example:
        >>> percent(0.0312), percent(0.0312, "+"), percent(1)
        ('3.1%', '+3.1%', '100%')
    """
    text = plain(100 * share, digits)
    return f"{sign if share > 0 else ''}{text}%"


def listed(words: Sequence[str]) -> str:
    """Words in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def numbers(values: Iterable[int], word: str = "") -> str:
    """Whole numbers, those that follow one another as "3 to 5"; behind a word in the plural where they are several."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    parts = [part for span in spans for part in ([f"{span[0]} to {span[-1]}"] if len(span) > 2 else map(str, span))]
    several = len(spans) > 1 or len(spans[0]) > 1
    return f"{word}{'s' if word and several else ''} {listed(parts)}".strip()


def share_of(part: int, whole: int) -> str:
    """How many matrices of how many."""
    if whole == 1:
        return "the one matrix"
    return f"all {whole} matrices" if part == whole else f"{part} of {whole} matrices"


def matrices(count: int) -> str:
    """How many matrices."""
    return "1 matrix" if count == 1 else f"{count} matrices"


def at_start(name: str) -> str:
    """The name of a matrix where a sentence begins with it: names of tensors stay as they are."""
    return f"Layer{name[5:]}" if name.startswith("layer ") else name


def capital(text: str) -> str:
    """A text as a sentence begins."""
    return text[:1].upper() + text[1:]
