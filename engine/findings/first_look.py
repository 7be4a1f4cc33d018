"""What is said of a first look: what was measured, and what is known of the matrices that did not converge."""

from collections.abc import Iterator

import pandas as pd

from polarax.findings.words import by_role, matrices
from polarax.metrics.catalogue import LEADING, OVERLAP
from polarax.metrics.certificate import Convergence
from polarax.metrics.look import is_first
from polarax.metrics.tables import column

# Sine of the angle by which leading subspaces may be off where they are judged by: what is lost of an overlap is then
# off by a few hundredths, a share of the change by as much of itself.
_VAGUE = 0.1
# Certificates of the subspaces that a metric rests on.
_RESTS_ON = {
    **{metric.name: ("angle_base",) for metric in LEADING.metrics},
    **{metric.name: ("angle_base", "angle_post") for metric in OVERLAP.metrics},
}


def is_known(frame: pd.DataFrame, metric: str) -> pd.Series:
    """False for the rows of which too little converged for this metric to be judged."""
    doubtful = is_lost(frame)
    for certificate in _RESTS_ON.get(metric, ()):
        doubtful |= column(frame, certificate) > _VAGUE
    return ~(is_first(frame) & doubtful)


def is_lost(frame: pd.DataFrame) -> pd.Series:
    """True for the rows of a first look that did not converge."""
    if "converged" not in frame:
        return pd.Series(False, frame.index)
    return frame["converged"] == Convergence.NOTHING.value


def count_first_looks(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows are of a first look, and of how many of them which is known."""
    rows = frame[is_first(frame)]
    counts = dict(rows["converged"].value_counts()) if "converged" in rows else {}
    named = {"converged": Convergence.ALL, "values_alone": Convergence.VALUES, "not_converged": Convergence.NOTHING}
    return {"matrices": len(rows), **{name: int(counts.get(one.value, 0)) for name, one in named.items()}}


def read_first_look(frame: pd.DataFrame, top_k: int) -> Iterator[str]:
    """Sentences on what a first look measured, and on what did not converge.

    Args:
        frame: `Run.frame()`.
        top_k: Leading singular values that were asked for; 0 if it is not known.
    """
    rows = frame[is_first(frame)]
    if rows.empty:
        return
    of_all = "" if len(rows) == len(frame) else f" at {len(rows)} of {len(frame)} matrices, the others in full"
    count = f"{top_k} " if top_k else ""
    yield (
        f"A first look{of_all}: the {count}leading singular values and their subspaces, and norms; nf, the drift "
        "budget and the fit were not measured."
    )
    lost = rows[is_lost(rows)]
    if len(lost):
        yield (
            f"{matrices(len(lost))} did not converge ({by_role(lost, frame)}): their leading singular values are at "
            "least those given, and of their alpha, overlaps and leading shares nothing is claimed; drift and the "
            "scale of the entries hold."
        )
    vague = rows[~is_lost(rows) & ~(is_known(rows, "overlap_left") & is_known(rows, "overlap_right"))]
    if len(vague):
        yield (
            f"In {matrices(len(vague))} ({by_role(vague, frame)}) the leading singular values are known and their "
            "subspaces hardly, for want of a gap behind them: nothing is claimed of their overlap."
        )
