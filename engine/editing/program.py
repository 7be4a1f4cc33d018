"""The compiled programs of an edit: one that finds the maps of a matrix and measures them, one that maps rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.editing.kinds import BASE, KINDS, Surroundings
from polarax.kernels import products
from polarax.kernels.edits.maps import RowMaps, starting_maps
from polarax.kernels.edits.measure import Measured, measure_grams, measure_maps
from polarax.kernels.edits.tall_pair import TallPair, gram_of, tall_pair
from polarax.kernels.edits.turned import aligned
from polarax.kernels.methods.gram_route import Base
from polarax.measuring.parts import How, begin

# Named, so that a draw does not depend on JAX's settings.
_GENERATOR = "threefry2x32"
_OF_SIGNS = 1  # what is folded into a matrix's key for its signs; rows take their block's number of its other keys


class Found(NamedTuple):
    """What has to be known of a matrix before its rows are gone through."""

    finite: jax.Array  # (), bool
    maps: RowMaps | None  # of the edit at its full strength; None of a random change
    measures: Measured | None  # (strengths,) each
    pair: TallPair | None  # of a random change, which is measured when it has been drawn
    no_base: jax.Array  # (), bool: the base is zero, and has no vectors


@functools.partial(jax.jit, static_argnames=("how",))
def decompose_base(base: jax.Array, *, how: How) -> Base:
    """What a comparison keeps of bases, (count, m, n), m >= n."""
    return begin(base, (), how=how).base


@functools.partial(
    jax.jit, static_argnames=("kind", "random_signs", "transposed", "measure", "whole", "method", "dtype")
)
def find_maps(
    base: jax.Array,
    post: jax.Array,
    key: jax.Array,
    factor: jax.Array,
    strengths: jax.Array,
    begun: Base | None = None,
    *,
    kind: str,
    random_signs: bool = False,
    transposed: bool = False,
    measure: bool = True,
    whole: bool = False,
    method: str = "auto",
    dtype: str = "float64",
) -> Found:
    """Decomposes a matrix of base and post, and finds what its rows are to be multiplied by.

    Args:
        base: (m, n), m >= n, as stored or its transpose.
        post: The same shape.
        key: (2,), uint32: what random signs are drawn from.
        factor: (), of scaled values.
        strengths: (strengths,): what is to be measured.
        begun: The base, (1, ...) each, if `decompose_base` was there before; only where that keeps bases in float64.
        kind: Of the edit.
        random_signs: Draw the signs of vector pairs.
        transposed: Whether the matrices are stored as their transposes.
        measure: Measure what the edit does.
        whole: The only strength is 1, at which it may be known without measuring.
        method: How to decompose.
        dtype: To compute in; float64 needs its scope.
    """
    record, shape = KINDS[kind], (base.shape[-2], base.shape[-1])
    begun = jax.tree.map(lambda x: x[0], begun)
    of_post = {"post_is_measured_alone": record.start == BASE}
    pair = tall_pair(base, post, dtype=dtype, method=method, begun=begun, **of_post)
    no_base = jnp.all(base == 0)
    if record.plan is None:
        return Found(pair.finite, None, None, pair if measure else None, no_base)
    signs = None
    if random_signs:
        of_signs = jax.random.fold_in(jax.random.wrap_key_data(key, impl=_GENERATOR), _OF_SIGNS)
        signs = jax.random.rademacher(of_signs, (shape[1],), jnp.dtype(dtype))
    square = shape[0] == shape[1]
    gram_post = functools.partial(gram_of, post, pair) if square else lambda: pair.post.gram
    around = Surroundings(transposed, square, factor.astype(dtype), signs, gram_post)
    pair = aligned(pair) if record.needs_alignment else pair
    plan = record.plan(pair, around)
    measures = None
    if measure and whole and plan.at_full is not None:
        measures = jax.tree.map(lambda x: x[None], plan.at_full())
    elif measure:
        start = starting_maps(pair, record.start)

        def by_maps(strength):
            return measure_maps(pair, plan.maps.between(start, strength))

        measures = _for_each(by_maps if plan.at is None else plan.at(), strengths.astype(dtype))
    return Found(pair.finite, plan.maps, measures, None, no_base)


@jax.jit
def map_rows(base: jax.Array, post: jax.Array, maps: RowMaps) -> jax.Array:
    """Rows of the edited matrix at full strength, (rows, n), from those of base and post as stored."""
    dtype = jax.tree.leaves(maps)[0].dtype
    return maps.apply(base.astype(dtype), post.astype(dtype))


class Sums(NamedTuple):
    """Products with a random matrix G, (n, n) each, over the rows so far."""

    gram: jax.Array  # G^T G
    of_base: jax.Array  # W_b^T G
    of_post: jax.Array  # W_p^T G


@functools.partial(jax.jit, static_argnames=("measure", "dtype"))
def draw_rows(
    base: jax.Array,
    post: jax.Array,
    key: jax.Array,
    block: jax.Array,
    sums: Sums | None,
    rows: jax.Array,
    *,
    measure: bool = True,
    dtype: str = "float64",
) -> tuple[jax.Array, Sums | None]:
    """Standard normal rows, (block rows, n), and the sums with them.

    Args:
        base: Rows of the base, as stored; zeros where there are none any more, and so is the next one.
        post: Rows of the post.
        key: (2,), uint32: the matrix's own.
        block: (): number of the block of rows.
        sums: So far.
        rows: (): how many of them there are.
        measure: Whether sums are wanted.
        dtype: Of the rows.
    """
    of_block = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key, impl=_GENERATOR), 0), block)
    drawn = jax.random.normal(of_block, base.shape, jnp.dtype(dtype))
    drawn = jnp.where(jnp.arange(base.shape[0])[:, None] < rows, drawn, 0)
    if not measure or sums is None:
        return drawn, None
    parts = (drawn, base.astype(dtype), post.astype(dtype))
    return drawn, Sums(*(total + products.inner(part, drawn) for total, part in zip(sums, parts, strict=True)))


@jax.jit
def measure_random(pair: TallPair, sums: Sums, deviation: jax.Array, strengths: jax.Array) -> Measured:
    """What W_b + strength sd G is, from products with G."""
    deviation = deviation / pair.unit

    def at(strength):
        sd = strength * deviation
        of_base = pair.base.gram + sd * sums.of_base / pair.unit
        of_post = products.transpose(pair.across) + sd * sums.of_post / pair.unit
        gram = of_base + sd * (products.transpose(sums.of_base) / pair.unit + sd * sums.gram)
        return measure_grams(pair, gram, of_base, of_post)

    return _for_each(at, strengths)


def _for_each(function, strengths):
    """One after another, in the memory of one."""
    if strengths.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(strengths[0]))
    return jax.lax.map(function, strengths)
