"""What is said of a first look: what was measured, and what is known of the matrices that did not converge."""

from collections.abc import Callable, Iterator

import pandas as pd

from polarax.metrics.catalogue import LEADING, OVERLAP
from polarax.metrics.certificate import Convergence
from polarax.metrics.look import is_first

# Metrics that mean something where the leading subspaces are known.
_OF_SUBSPACES = frozenset(metric.name for group in (LEADING, OVERLAP) for metric in group.metrics)


def is_known(frame: pd.DataFrame, metric: str) -> pd.Series:
    """False for the rows of which too little converged for this metric to be judged."""
    known = pd.Series(True, frame.index)
    if "converged" not in frame:
        return known
    doubtful = [Convergence.NOTHING.value]
    if metric in _OF_SUBSPACES:
        doubtful.append(Convergence.VALUES.value)
    return ~(is_first(frame) & frame["converged"].isin(doubtful))


def count_first_looks(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows are of a first look, and of how many of them which is known."""
    rows = frame[is_first(frame)]
    counts = dict(rows["converged"].value_counts()) if "converged" in rows else {}
    named = {"converged": Convergence.ALL, "values_alone": Convergence.VALUES, "not_converged": Convergence.NOTHING}
    return {"matrices": len(rows), **{name: int(counts.get(one.value, 0)) for name, one in named.items()}}


def read_first_look(frame: pd.DataFrame, top_k: int, roles_of: Callable[[pd.DataFrame], str]) -> Iterator[str]:
    """Sentences on what a first look measured, and on what did not converge.

    Args:
        frame: `Run.frame()`.
        top_k: Leading singular values that were asked for; 0 if it is not known.
        roles_of: The roles of some rows, with how many of theirs where that is not all.
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
    if "converged" not in frame:
        return
    lost = rows[rows["converged"] == Convergence.NOTHING.value]
    if len(lost):
        yield (
            f"{_matrices(len(lost))} did not converge ({roles_of(lost)}): their leading singular values are at least "
            "those given, and of their alpha, overlaps and leading shares nothing is claimed; drift and the scale of "
            "the entries hold."
        )
    vague = rows[rows["converged"] == Convergence.VALUES.value]
    if len(vague):
        yield (
            f"In {_matrices(len(vague))} the leading singular values are known and their subspaces are not, there being "
            f"no gap behind them ({roles_of(vague)}): of overlaps and leading shares nothing is claimed."
        )


def _matrices(count):
    return "1 matrix" if count == 1 else f"{count} matrices"
