"""Changes of one low rank, exact up to rounding, as adapters make them.

LoRA (arXiv:2106.09685) adds B A, of rank k in every matrix that it adapts. The rank of a full fine-tune's change is
that of the matrix, and where rounding hides its smaller singular values, how many are left differs from matrix to
matrix.
"""

import numpy as np
import pandas as pd

from polarax.findings.effects import rows_that_count
from polarax.findings.mechanical.explanation import Explanation
from polarax.findings.words import by_role, listed
from polarax.metrics.tables import column, sides

# Of a role's matrices, so many must have the rank; of the others rounding may hide a direction or two.
_NEARLY_ALL = 0.9
# Of the shorter side: where the rank is higher, it is not low.
_LOW = 0.5
# A rank that fewer matrices have in common is told only where rounding makes less than this share of their changes.
_FEWEST = 3
_SHARP = 0.01
# Of the rank: where so many rows or columns changed at all, those are what it counts (tokens that were not seen).
_ROWS = 1.05


def read_low_rank(frame: pd.DataFrame) -> Explanation | None:
    """The changes of a table of matrices that have one low rank; None where there are none."""
    counted = frame[rows_that_count(frame) & column(frame, "rank_change").notna()]
    ranks = column(counted, "rank_change")
    low = (ranks > 0) & (ranks <= _LOW * sides(counted)[1]) & ~_few_rows(counted, ranks)
    of_rank: dict[int, list[str]] = {}
    for role, rows in counted.groupby("role"):
        rank = int(ranks[rows.index].mode().max())
        if (low[rows.index] & (ranks[rows.index] == rank)).sum() >= _NEARLY_ALL * len(rows):
            of_rank.setdefault(rank, []).append(role)
    told: dict[int, pd.DataFrame] = {}
    for rank, roles in sorted(of_rank.items()):
        rows = counted[counted["role"].isin(roles) & (ranks == rank)]
        if len(rows) >= _FEWEST or (column(rows, "rounding_share") < _SHARP).all():
            told[rank] = rows
    if not told:
        return None
    parts = [f"{by_role(rows, counted, whole='all ')}: changes of rank {rank}" for rank, rows in told.items()]
    made = f"a LoRA of rank {next(iter(told))} makes" if len(told) == 1 else "LoRAs of these ranks make"
    return Explanation(
        name=f"a LoRA of rank {next(iter(told))}"
        if len(told) == 1
        else f"LoRAs of ranks {listed(list(map(str, told)))}",
        sentence=f"{'; '.join(parts)}: as {made}.",
        rows=frozenset().union(*(rows.index for rows in told.values())),
        kinds=frozenset({"low rank", "one direction"}),
    )


def _few_rows(frame: pd.DataFrame, ranks: pd.Series) -> pd.Series:
    """True where no more rows, or columns, can have changed than the rank has directions."""
    longer, shorter = sides(frame)
    share = 1 - column(frame, "unchanged").fillna(0)
    return np.minimum(share * longer, share * shorter) <= _ROWS * ranks
