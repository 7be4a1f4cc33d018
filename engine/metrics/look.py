"""Column `look` of a first look: which rows are of it, and which of a full analysis that took their place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LOOK = "look"
FIRST, FULL = "first", "full"
_BEHIND = "matched_by"  # where it stands


def with_look(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of a first look, with `LOOK`."""
    place = list(columns).index(_BEHIND) + 1
    return (*columns[:place], LOOK, *columns[place:])


def is_first(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows that were looked at first, and not closer."""
    import pandas as pd

    return frame[LOOK] == FIRST if LOOK in frame else pd.Series(False, frame.index)
