"""What a mechanical effect explains."""

from typing import NamedTuple

import pandas as pd


class Explanation(NamedTuple):
    """A known mechanical effect in a table of matrices."""

    name: str  # in summary.json and in the first sentences
    sentence: str
    rows: frozenset[int]  # labels of the rows that have it
    kinds: frozenset[str]  # kinds of effect that it explains in them

    def explains(self, effects: pd.DataFrame) -> pd.Series:
        """True for the effects, as `find_effects` has them, that it explains."""
        return effects["row"].isin(self.rows) & effects["kind"].isin(self.kinds)
