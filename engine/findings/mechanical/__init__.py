"""What is more than chance and yet no finding: the known mechanical effects, each told by a sentence of its own."""

from typing import NamedTuple

import pandas as pd

from polarax.findings.effects import find_effects
from polarax.findings.mechanical.decay import read_decay
from polarax.findings.mechanical.explanation import Explanation
from polarax.findings.mechanical.low_rank import read_low_rank

__all__ = ["Explanation", "Found", "tell_apart"]


class Found(NamedTuple):
    """What stands out of a table of matrices."""

    effects: pd.DataFrame  # the findings: as `find_effects` has them, without those that are explained
    explained: tuple[Explanation, ...]

    @property
    def rows_explained(self) -> frozenset[int]:
        """Labels of the rows in which a mechanical effect explains something."""
        return frozenset().union(*(explanation.rows for explanation in self.explained))


def tell_apart(frame: pd.DataFrame, draws: int = 0) -> Found:
    """The effects that stand out, and what of them known mechanical effects explain.

    Args:
        frame: `Run.frame()`; what was not measured is not judged.
        draws: How many draws the sampled controls are made of, if the frame has any.
    """
    effects = find_effects(frame, draws)
    explained = tuple(filter(None, (read(frame) for read in (read_decay, read_low_rank))))
    whole = [explanation.explains(effects) for explanation in explained]
    left = effects[~pd.concat(whole, axis=1).any(axis=1)] if whole and len(effects) else effects
    return Found(left.reset_index(drop=True), explained)
