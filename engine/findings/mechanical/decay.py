"""Weight decay: all matrices shrank alike, whatever else training did to them.

Decoupled decay multiplies every weight by the product of 1 - learning rate x decay over the steps, the same for all
(Loshchilov and Hutter, arXiv:1711.05101). `alpha_entries` shows that factor alone: what training adds in directions of
its own leaves it at 1, with a deviation that is known.
"""

import pandas as pd

from polarax.findings.effects import DEVIATIONS, rows_that_count
from polarax.findings.first_look import is_known
from polarax.findings.mechanical.explanation import Explanation
from polarax.findings.words import by_role, percent
from polarax.metrics.budget import SHARE
from polarax.metrics.tables import column

# Matrices shrank alike where they differ by less than this share of the factor, beyond what chance gives each.
_ALIKE = 0.1
# Of a role's matrices, and of all: so many must show the factor, or that they have none of it.
_NEARLY_ALL = 0.9
_MOST = 2 / 3
_FEWEST = 3
# Shares of the change on the diagonal, of which one factor for all values makes what is along the base, and no more.
_DIAGONALS = ("budget_scaling", "leading_scaling")
_LEAST = 1e-4  # a smaller factor is not worth a sentence
_PURE = 0.99  # share of the change that the factor makes where there is nothing else
# What a matrix that shrank has besides: what shrinks it is on the diagonal, turns no vectors and leaves no space.
_FOLLOWS = frozenset({"scaled down", "uneven", "leading uneven", "symmetric", "inside", "turned alike"})


def read_decay(frame: pd.DataFrame) -> Explanation | None:
    """What weight decay explains of a table of matrices; None where they did not shrink alike."""
    rows = frame[rows_that_count(frame) & is_known(frame, "alpha_entries")]
    by, chance = column(rows, "alpha_entries") - 1, DEVIATIONS * column(rows, "alpha_entries_null_std")
    shrunk = by < -chance
    factor = by[shrunk].median()
    if shrunk.sum() < _FEWEST or -factor < _LEAST:
        return None
    telling = chance < -factor / 2
    along = (by / column(rows, "drift")) ** 2  # share of the change
    beyond = [column(rows, name) - column(rows, f"{name}_null") - along for name in _DIAGONALS]
    uneven = (beyond[0] > SHARE) | (beyond[1] > SHARE)
    alike = telling & ~uneven & ((by - factor).abs() <= _ALIKE * -factor + chance)
    kept = telling & (by.abs() <= _ALIKE * -factor + chance)
    roles = pd.DataFrame({"telling": telling, "alike": alike, "kept": kept}).groupby(rows["role"]).sum()
    roles = roles[roles["telling"] > 0]
    decayed = roles["alike"] >= _NEARLY_ALL * roles["telling"]
    spared = roles["kept"] >= _NEARLY_ALL * roles["telling"]
    if not (decayed | spared).all() or alike.sum() < max(_FEWEST, _MOST * telling.sum()):
        return None
    without = rows[telling & rows["role"].isin(roles.index[spared])]
    return Explanation(
        name="weight decay",
        sentence=_sentence(rows, alike, without, factor, bool((along[alike] > _PURE).all())),
        rows=frozenset(rows.index[alike]),
        kinds=_FOLLOWS,
    )


def _sentence(rows, alike, without, factor, pure):
    which = f"All {len(rows)} matrices" if alike.all() else f"{by_role(rows[alike], rows)}: {alike.sum()} matrices"
    alone = ", and nothing else happened to them" if pure else ""
    but = f"; {by_role(without)} did not" if len(without) else ""
    return (
        f"{which} shrank alike, by {percent(-factor)}{alone}{but}: what weight decay does (the product of 1 - learning "
        "rate x decay over the steps)."
    )
