"""The edits that there are: a record for each, from which flags, programs and pages read."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from polarax.errors import UsageError
from polarax.kernels import BUDGET_PARTS, SIDES
from polarax.kernels.edits import maps as maps_of
from polarax.kernels.edits.maps import RowMaps
from polarax.kernels.edits.measure import Measured, measure_known
from polarax.kernels.edits.tall_pair import TallPair

POST, BASE = "post", "base"


class Surroundings(NamedTuple):
    """What an edit of a tall matrix may depend on beside base and post."""

    transposed: bool  # whether the matrix is stored as its transpose: left and right are named for it as stored
    square: bool
    factor: jax.Array  # of scaled values
    signs: jax.Array | None  # of pairs of vectors; None leaves them aligned


class Kind(NamedTuple):
    """One edit."""

    name: str
    weight: str  # what is written, as a formula
    asks: str
    start: str  # what strength 0 is: POST or BASE
    maps: Callable[[TallPair, Surroundings], RowMaps] | None  # None of a random change
    options: tuple[str, ...] = ()  # those that this kind alone has: factor, signs, sd
    alone: bool = False  # whether one model is enough
    sided: bool = False  # whether it is another one of the transposed matrix
    needs_alignment: bool = False  # whether the pair is to be aligned before
    known: Callable[[TallPair, Surroundings], Measured] | None = None  # what is left at full strength, where known


def _side(side: str, around: Surroundings) -> str:
    return SIDES[1 - SIDES.index(side)] if around.transposed else side


def _broken(side: str) -> Kind:
    def known(pair: TallPair, around: Surroundings) -> Measured:
        if around.signs is not None:
            base = pair.base
            pair = pair._replace(base=base._replace(right=base.right * around.signs[..., None, :]))
        left = _side(side, around) == "left"
        return measure_known(pair, pair.post.values, of_left=BASE if left else POST, of_right=POST if left else BASE)

    return Kind(
        f"break-{side}",
        {"left": "U_b S_p V_p^T", "right": "U_p S_p V_b^T"}[side],
        "is the coordination of left and right vectors needed?",
        POST,
        lambda pair, around: maps_of.broken(pair, _side(side, around), around.signs),
        ("signs", "seed"),
        sided=True,
        needs_alignment=True,
        known=known,
    )


def _restored(side: str) -> Kind:
    return Kind(
        f"restore-{side}",
        {"left": "(U_b Q_V) S_p V_p^T", "right": "U_p S_p (V_b Q_U)^T"}[side],
        "does one side's rotation carry over to the other?",
        POST,
        lambda pair, around: maps_of.restored(pair, _side(side, around)),
        sided=True,
    )


def _kept(part: str) -> Kind:
    return Kind(
        f"keep-{part}",
        f"W_b + the {part} part of W_p - W_b",
        "which part of the change carries the behaviour?",
        BASE,
        lambda pair, around: maps_of.kept_part(pair, part, around.square),
    )


_RECORDS = (
    Kind(
        "replace-values",
        "U_p (alpha S_b) V_p^T",
        "is uniform scaling enough?",
        POST,
        lambda pair, around: maps_of.replace_values(pair),
        known=lambda pair, around: measure_known(pair, maps_of.replaced_values(pair), of_left=POST, of_right=POST),
    ),
    Kind(
        "scale-values",
        "U (c S) V^T",
        "is scaling a temperature?",
        POST,
        lambda pair, around: maps_of.scaled(pair, around.factor),
        ("factor",),
        alone=True,
        known=lambda pair, around: measure_known(pair, around.factor * pair.post.values, of_left=POST, of_right=POST),
    ),
    *map(_broken, SIDES),
    *map(_restored, SIDES),
    Kind(
        "reparameterise",
        "alpha (U_b Q) S_b (V_b Q)^T",
        "is it one rotation of both sides?",
        POST,
        lambda pair, around: maps_of.reparameterised(pair),
    ),
    *map(_kept, BUDGET_PARTS),
    Kind("random-control", "W_b + sd G", "what does a random change of that size do?", BASE, None, ("sd", "seed")),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _RECORDS}
"""Every edit by its name."""

SIDED = ("break", "restore")
"""Names that stand for an edit of either side, together with the side."""


def kind_named(name: str, side: str | None = None) -> Kind:
    """The edit of that name.

    Args:
        name: One of `KINDS`, or of `SIDED` with a side.
        side: "left" or "right".

    Raises:
        UsageError: There is no such edit, or the side does not belong to it.
    """
    if name in SIDED:
        if side not in SIDES:
            raise UsageError(f"--kind={name} needs --side=left or --side=right. Got {side or 'none'}.")
        return KINDS[f"{name}-{side}"]
    if name not in KINDS:
        raise UsageError(f"Unknown kind {name!r}. Expected one of {', '.join((*KINDS, *SIDED))}.")
    if side:
        raise UsageError(f"--kind={name} takes no --side. Got --side={side}.")
    return KINDS[name]
