"""What a post is to the base where it is not the base, trained: permuted, turned, unrelated, or another layer.

A matrix that was trained keeps most of the base, whatever the size of the change: <W_b, W_p> stays far above chance.
Where it does not, measures of a change say nothing of training, and the row says instead what the post is.
"""

import enum
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polarax.metrics.catalogue import DEVIATIONS
from polarax.metrics.change import MOSTLY_ROUNDING
from polarax.metrics.status import is_changed
from polarax.metrics.tables import column

if TYPE_CHECKING:
    import pandas as pd

# Cosine of base and post, as vectors of all entries, below which the post's content is looked at. Noise of the base's
# own size leaves 0.7.
STRANGE_COSINE = 0.5
# A cosine that leaves nothing of the base to speak of: 1/400 of the post's square.
UNRELATED_COSINE = 0.05
# Spectra are the same where they differ by no more than the rounding of what is stored, which is known, and that of
# decomposing, for which this stands. Of independent matrices of 50,000 rows they still differ by more.
_DECOMPOSED_ALIKE = 1e-5
# Both sides may be rounded.
_SIDES = math.sqrt(2)

# What a relation rests on.
_MEASURED = ("drift", "alpha_entries")


class Relation(enum.Enum):
    """What a post is to the base, as column `relation` has it."""

    TRAINED = ""  # or unchanged, or not to be told
    ROWS_PERMUTED = "rows permuted"
    COLUMNS_PERMUTED = "columns permuted"
    BOTH_PERMUTED = "rows and columns permuted"
    ROWS_FLIPPED = "signs of rows flipped"
    COLUMNS_FLIPPED = "signs of columns flipped"
    ROWS_PERMUTED_AND_FLIPPED = "rows permuted and their signs flipped"
    COLUMNS_PERMUTED_AND_FLIPPED = "columns permuted and their signs flipped"
    TURNED = "same singular values, other vectors"
    UNRELATED = "unrelated to the base"

    @property
    def is_arrangement(self) -> bool:
        """Whether the post has exactly the entries of the base, in another order or with other signs."""
        return self not in (Relation.TRAINED, Relation.TURNED, Relation.UNRELATED)


class MovedLayer(NamedTuple):
    """A layer of the post that is another layer of the base."""

    post: int
    base: int
    matrices: int  # that were found
    drift: float  # the largest of them, each from what it is in the base; 0 for the same bytes


def other_matrix(layer: int | None, expert: int | None, *, of_layer: int | None, of_expert: int | None) -> str:
    """The relation of a matrix that another matrix of the base is: "layer 8 of the base".

    Args:
        layer: Of the post's matrix.
        expert: Of the post's matrix.
        of_layer: Of the base's.
        of_expert: Of the base's.
    """
    words = [f"layer {of_layer}"] if of_layer is not None and of_layer != layer else []
    if of_expert is not None and of_expert != expert:
        words.append(f"expert {of_expert}")
    return f"{', '.join(words)} of the base"


def has_relation(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows whose post is something else than the base, trained."""
    if "relation" not in frame:
        return is_changed(frame) & False
    return frame["relation"] != Relation.TRAINED.value


def is_rearranged(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows whose post has exactly the entries of the base."""
    return frame["relation"].isin([relation.value for relation in Relation if relation.is_arrangement])


def looks_strange(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows whose post has little of the base; never where drift or alpha_entries were not measured."""
    cosine = _cosine(*(column(frame, name) for name in _MEASURED))
    rounded = column(frame, "rounding_share") > MOSTLY_ROUNDING
    return is_changed(frame) & (cosine.abs() < STRANGE_COSINE) & ~rounded


class Resemblance:
    """How much of the base a post has, from the readings of one matrix.

    Args:
        row: Its numbers, by column; of a first look also norm_base and norm_post.
        s_base: Singular values of the base, (r,), or the leading ones.
        s_post: As many of the post.
    """

    def __init__(self, row: Mapping[str, Any], s_base: np.ndarray, s_post: np.ndarray):
        self._row = row
        self._shape = row["rows"], row["cols"]
        self._exact = len(s_base) == min(self._shape)
        self._s_base = self._whole(s_base.astype(np.float64), "norm_base")
        self._s_post = self._whole(s_post.astype(np.float64), "norm_post")
        self.cosine = _cosine(*(row.get(name, math.nan) for name in _MEASURED))

    @property
    def may_be_rearranged(self) -> bool:
        """Whether it is worth looking at the entries: the post is strange, or spectra agree that nothing else moved."""
        if math.isnan(self.cosine) or self._row.get("rounding_share", 0) > MOSTLY_ROUNDING:
            return False
        agree = math.sqrt(np.finfo(np.float64).eps) if self._exact else _DECOMPOSED_ALIKE
        return abs(self.cosine) < STRANGE_COSINE or self._shift < agree < 1e-3 * self._row["drift"]

    def relation(self) -> Relation:
        """What the post is, its entries being no arrangement of the base's."""
        if not self.may_be_rearranged:
            return Relation.TRAINED
        if self._same_spectra() and abs(self.cosine) <= min(STRANGE_COSINE, max(UNRELATED_COSINE, self._if_turned())):
            return Relation.TURNED
        by_chance = DEVIATIONS / math.sqrt(math.prod(self._shape))
        if abs(self.cosine) <= min(STRANGE_COSINE, max(UNRELATED_COSINE, by_chance)):
            return Relation.UNRELATED
        return Relation.TRAINED

    @functools.cached_property
    def _shift(self):
        """||s_post - s_base|| / ||s_base||; of a first look at least that of the leading values and the norms."""
        if "nss" in self._row:
            return self._row["nss"]
        return np.linalg.norm(self._s_post - self._s_base) / np.linalg.norm(self._s_base)

    def _same_spectra(self):
        rounding = self._row.get("rounding_share", math.nan) * self._row["drift"]
        return self._shift <= _DECOMPOSED_ALIKE + _SIDES * (0 if math.isnan(rounding) else rounding)

    def _if_turned(self):
        """The largest cosine that chance leaves where the vectors of the shorter side alone took random directions."""
        base, post = self._s_base**2, self._s_post**2
        return DEVIATIONS * math.sqrt(base @ post / (base.sum() * post.sum() * min(self._shape)))

    def _whole(self, leading, norm):
        """A spectrum of which the leading values and the norm are known, the others as their root mean square."""
        others = min(self._shape) - len(leading)
        if not others:
            return leading
        rest = max(self._row[norm] ** 2 - leading @ leading, 0.0)
        return np.append(leading, np.full(others, math.sqrt(rest / others)))


def _cosine(drift, alpha_entries):
    """<W_b, W_p> / (||W_b|| ||W_p||), of numbers or of columns."""
    # drift^2 = 1 + p^2 - 2 alpha_entries, p being ||W_p|| / ||W_b||.
    return alpha_entries / (drift**2 - 1 + 2 * alpha_entries) ** 0.5
