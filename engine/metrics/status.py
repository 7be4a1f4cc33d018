"""What the numbers of a row are worth: its status, and which control it is judged by."""

import enum
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


# Beyond this product of condition number and drift the first-order closed forms fail (docs/definitions.md).
CONTROL_REACH_LIMIT = 1.0


class Status(enum.Enum):
    """Whether the numbers of a row mean what they say, and the message that matrices.csv has."""

    OK = "ok", "ok"
    UNCHANGED = "unchanged", "unchanged"
    RANK_DEFICIENT = "rank-deficient", "rank {rank} of {full} in {side}"
    ZERO = "zero", "zero {side}"
    NOT_FINITE = "not finite", "not finite: {count} in {side}"

    def __init__(self, label: str, message: str):
        self.label = label  # in summary.json
        self.message = message

    @classmethod
    def of_message(cls, text: str) -> "Status | None":
        """The status whose message this is; None for a text that is none, as another version may have written."""
        return next((one for one in cls if text.startswith(one.message.partition("{")[0])), None)

    @classmethod
    def of_readings(cls, readings: Mapping[str, Any], full_rank: int) -> "tuple[Status, str]":
        """The status of a row, and its message.

        Args:
            readings: nonfinite_base, nonfinite_post, rank_base, rank_post, change_norm of a matrix; a first look has
                norm_base and norm_post in place of the ranks, which it does not know.
            full_rank: min(m, n).
        """
        for side in ("base", "post"):
            if count := readings[f"nonfinite_{side}"]:
                return cls.NOT_FINITE, cls.NOT_FINITE.message.format(count=count, side=side)
        for side in ("base", "post"):
            if not readings[f"rank_{side}" if f"rank_{side}" in readings else f"norm_{side}"]:
                return cls.ZERO, cls.ZERO.message.format(side=side)
        if not readings["change_norm"]:
            return cls.UNCHANGED, cls.UNCHANGED.message
        for side in ("base", "post"):
            if (rank := readings.get(f"rank_{side}", full_rank)) < full_rank:
                return cls.RANK_DEFICIENT, cls.RANK_DEFICIENT.message.format(rank=rank, full=full_rank, side=side)
        return cls.OK, cls.OK.message

    @property
    def meaningless(self) -> bool:
        """Whether what was computed means nothing."""
        return self in (Status.NOT_FINITE, Status.ZERO)


class JudgedBy(enum.Enum):
    """Which control a row is judged by: column `control`."""

    NONE = ""
    LAW = "law"
    DRAWS = "draws"
    # Of runs that were written before there was a law, of first order all.
    FIRST_ORDER = "first order"
    OUT_OF_RANGE = "out of range"
    CLOSED_FORM = "closed form"
    SAMPLED = "sampled"

    @classmethod
    def of_reach(cls, reach: float, *, drawn: bool) -> "JudgedBy":
        """Which one it is.

        Args:
            reach: The base's condition number times drift.
            drawn: Whether random changes were drawn.
        """
        if math.isnan(reach):
            return cls.NONE
        return cls.DRAWS if drawn else cls.LAW


def status_labels(frame: "pd.DataFrame") -> "pd.Series":
    """`Status.label` of each row; its own text where it is none."""
    statuses = {text: Status.of_message(text) for text in frame["status"].unique()}
    labels = {text: text if status is None else status.label for text, status in statuses.items()}
    return frame["status"].map(labels)


def is_changed(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows whose numbers say what a change did: neither unchanged, nor zero, nor with NaN or Inf."""
    return status_labels(frame).isin([Status.OK.label, Status.RANK_DEFICIENT.label])


def is_meaningless(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows of which what was computed means nothing."""
    return status_labels(frame).isin([status.label for status in Status if status.meaningless])


def is_out_of_range(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows whose closed forms are of first order, and rough."""
    rough = frame["control"] == JudgedBy.OUT_OF_RANGE.value
    if "control_reach" in frame:
        rough |= (frame["control"] == JudgedBy.SAMPLED.value) & (frame["control_reach"] > CONTROL_REACH_LIMIT)
    return rough


def is_drawn(frame: "pd.DataFrame") -> "pd.Series":
    """True for the rows for which random changes were drawn."""
    return frame["control"].isin([JudgedBy.DRAWS.value, JudgedBy.SAMPLED.value])
