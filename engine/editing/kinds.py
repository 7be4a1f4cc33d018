"""The edits that there are: a record for each, from which flags, programs and pages read."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.errors import UsageError
from polarax.kernels import BUDGET_PARTS, SIDES
from polarax.kernels.edits import maps as maps_of
from polarax.kernels.edits.kept import measure_kept
from polarax.kernels.edits.maps import RowMaps
from polarax.kernels.edits.measure import Measured, measure_known, measure_maps
from polarax.kernels.edits.tall_pair import TallPair

POST, BASE = "post", "base"


class Surroundings(NamedTuple):
    """What an edit of a tall matrix may depend on beside base and post."""

    transposed: bool  # whether the matrix is stored as its transpose: left and right are named for it as stored
    square: bool
    factor: jax.Array  # of scaled values
    signs: jax.Array | None  # of pairs of vectors; None leaves them aligned
    gram_post: Callable[[], jax.Array]  # gives W_p^T W_p, (..., r, r), in the unit of the pair


class Plan(NamedTuple):
    """How an edit is made and measured. What is not asked for is not computed under jit."""

    maps: RowMaps
    at_full: Callable[[], Measured] | None = None  # at full strength; None where it is not known beforehand
    at: Callable[[], Callable[[jax.Array], Measured]] | None = None  # gives that of a strength; None: the maps tell


class Kind(NamedTuple):
    """One edit."""

    name: str
    weight: str  # what is written, as a formula
    asks: str
    start: str  # what strength 0 is: POST or BASE
    plan: Callable[[TallPair, Surroundings], Plan] | None  # None of a random change
    options: tuple[str, ...] = ()  # those that this kind alone has: factor, signs, sd
    alone: bool = False  # whether one model is enough
    sided: bool = False  # whether it is another one of the transposed matrix
    needs_alignment: bool = False  # whether the pair is to be aligned before


def _side(side: str, around: Surroundings) -> str:
    return SIDES[1 - SIDES.index(side)] if around.transposed else side


def _replaced(pair: TallPair, around: Surroundings) -> Plan:
    def at_full():
        return measure_known(pair, maps_of.replaced_values(pair), of_left=POST, of_right=POST)

    return Plan(maps_of.replace_values(pair), at_full)


def _scaled(pair: TallPair, around: Surroundings) -> Plan:
    def at_full():
        return measure_known(pair, around.factor * pair.post.values, of_left=POST, of_right=POST)

    return Plan(maps_of.scaled(pair, around.factor), at_full)


def _broken(side: str) -> Kind:
    def plan(pair: TallPair, around: Surroundings) -> Plan:
        tall_side = _side(side, around)
        maps = maps_of.broken(pair, tall_side, around.signs)
        if around.signs is not None:
            base = pair.base
            pair = pair._replace(base=base._replace(frame=base.frame * around.signs[..., None, :]))
        of_left, of_right = (BASE, POST) if tall_side == "left" else (POST, BASE)
        return Plan(maps, lambda: measure_known(pair, pair.post.values, of_left=of_left, of_right=of_right))

    return Kind(
        f"break-{side}",
        {"left": "U_b S_p V_p^T", "right": "U_p S_p V_b^T"}[side],
        "is the coordination of left and right vectors needed?",
        POST,
        plan,
        ("signs", "seed"),
        sided=True,
        needs_alignment=True,
    )


def _restored(side: str) -> Kind:
    def plan(pair: TallPair, around: Surroundings) -> Plan:
        tall_side = _side(side, around)
        maps = maps_of.restored(pair, tall_side)
        if tall_side == "right" and not around.square:  # Q_U is no rotation
            return Plan(maps)
        return Plan(maps, lambda: _of_base(pair, maps, pair.post.values, True))

    return Kind(
        f"restore-{side}",
        {"left": "(U_b Q_V) S_p V_p^T", "right": "U_p S_p (V_b Q_U)^T"}[side],
        "does one side's rotation carry over to the other?",
        POST,
        plan,
        sided=True,
    )


def _reparameterised(pair: TallPair, around: Surroundings) -> Plan:
    found = maps_of.reparameterised(pair)
    return Plan(found.maps, lambda: _of_base(pair, found.maps, found.values, found.determined))


def _of_base(pair: TallPair, maps: RowMaps, values: jax.Array, rotation: jax.Array | bool) -> Measured:
    """What has the base's polar factor, if both have full rank and the base's vectors were rotated."""
    whole = jnp.all(pair.base.inside & pair.post.inside & (values != 0)) & jnp.all(rotation)
    return lax.cond(
        whole,
        lambda: measure_known(pair, values, of_left=BASE, of_right=BASE),
        lambda: measure_maps(pair, maps),
    )


def _kept(part: str) -> Kind:
    def plan(pair: TallPair, around: Surroundings) -> Plan:
        at = functools.partial(measure_kept, pair, part, square=around.square, gram_post=around.gram_post)
        return Plan(maps_of.kept_part(pair, part, around.square), at=at)

    return Kind(
        f"keep-{part}",
        f"W_b + the {part} part of W_p - W_b",
        "which part of the change carries the behaviour?",
        BASE,
        plan,
    )


_RECORDS = (
    Kind(
        "replace-values",
        "U_p (alpha S_b) V_p^T",
        "is uniform scaling enough?",
        POST,
        _replaced,
    ),
    Kind(
        "scale-values",
        "U (c S) V^T",
        "is scaling a temperature?",
        POST,
        _scaled,
        ("factor",),
        alone=True,
    ),
    *map(_broken, SIDES),
    *map(_restored, SIDES),
    Kind(
        "reparameterise",
        "alpha (U_b Q) S_b (V_b Q)^T",
        "is it one rotation of both sides?",
        POST,
        _reparameterised,
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
