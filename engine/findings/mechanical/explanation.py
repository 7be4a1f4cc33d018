"""What a mechanical effect explains."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd


class Explanation(NamedTuple):
    """A known mechanical effect in a table of matrices."""

    name: str  # in summary.json and in the first sentences
    sentence: str
    rows: frozenset[int]  # labels of the rows that have it
    kinds: frozenset[str]  # kinds of effect that it explains in them
    at_most: Mapping[str, Mapping[int, float]] = {}  # others, by kind and row, up to this distance from their control

    def explains(self, effects: pd.DataFrame) -> pd.Series:
        """True for the effects, as `find_effects` has them, that it explains."""
        distance = (effects["value"] - effects["control"]).abs()
        limit = [self.at_most.get(kind, {}).get(row, -1.0) for kind, row in zip(effects["kind"], effects["row"], strict=True)]
        return effects["row"].isin(self.rows) & (effects["kind"].isin(self.kinds) | (distance <= limit))
