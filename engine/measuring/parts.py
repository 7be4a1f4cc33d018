"""The parts that a measurement is made of: functions of a stack's arrays, each of which can be a program of its own.

What reads matrices as they are stored is made for one shape: Gram matrices, frames, what depends on stored entries.
What follows from frames depends on r = min(m, n) alone, and is one program for all shapes with that r: its `rows`, the
longer side, is an operand. What is hardly ever needed, such as LAPACK for a matrix of lower rank, is compiled when it
is.

Every array has the leading axes of the matrices, (...); matrices are tall, m >= n. `polarax.measuring.program` says
which part follows which.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax import kernels
from polarax.kernels.methods import Begun, Method, Post, Related, Route, method_named
from polarax.kernels.sides import Side
from polarax.measuring.first_look import by_first_look
from polarax.measuring.polar_program import by_polar_factors
from polarax.measuring.sampled_controls import columns_of_controls, controls_of, drawn_post, read_sampled
from polarax.metrics import GROUPS, MatrixPair, Readings, Spectra, StoredEntries, own_spectrum_metrics
from polarax.metrics.own_spectrum import read_own_spectrum
from polarax.planning.measurement import Measurement

Part = TypeVar("Part", bound=Callable[..., Any])

# Every part, by its name: what a compiled program is looked up by.
PARTS: dict[str, Callable[..., Any]] = {}

# The fields of `Frames` that are arrays; without a group that needs vectors, those of `Spectra`.
Arrays = dict[str, Any]


class StackReadings(NamedTuple):
    """Readings of a stack, each column or array name -> (count, ...)."""

    posts: tuple[dict[str, Any], ...]  # of the base and each post
    pairs: tuple[dict[str, Any], ...]  # of posts against each other


class InFrames(NamedTuple):
    """Two matrices related by a route."""

    arrays: Arrays
    decomposed: Any  # what the route keeps of the second
    resolved: jax.Array | None  # as `Related.resolved`


class How(NamedTuple):
    """How matrices are decomposed: what of a measurement a program for that depends on."""

    method: str  # one of `polarax.kernels.SVD_METHODS`
    dtype: str  # of the frames
    change_values: bool = False  # also decompose the change from the base, for its singular values

    @classmethod
    def of(cls, measurement: Measurement) -> "How":
        """That of a measurement."""
        return cls(measurement.method, measurement.dtype, measurement.change_values)

    @property
    def chosen(self) -> Method:
        """The method."""
        return method_named(self.method)

    @property
    def route(self) -> Route[Any, Any, Any]:
        """The method's route."""
        return self.chosen.route(change_values=self.change_values, dtype=self.dtype)

    def by_fallback(self, base: jax.Array, post: jax.Array) -> Arrays:
        """The frames of a pair by what takes the matrices that the route does not resolve."""
        fallback = self.chosen.fallback
        assert fallback is not None
        return arrays_of(fallback.pair(base, post, change_values=self.change_values, dtype=self.dtype))


def _part(function: Part) -> Part:
    PARTS[function.__name__] = function
    return function


@_part
def measure_at_once(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...],
) -> StackReadings:
    """First looks, and headlines by products: they decompose no matrix, and are one program."""
    if measurement.quick:
        return StackReadings(*map(tuple, by_first_look(base, posts, keys, pairs, measurement)))
    return StackReadings(*by_polar_factors(base, posts, pairs, measurement))


# Frames.


@_part
def decompose_pair(base: jax.Array, post: jax.Array, *, how: How, keep: bool) -> tuple[Any, InFrames]:
    """A base with its only post; what the route keeps of the base, if it is to be kept, and both in their frames."""
    with how.chosen.scope():
        begun, related = how.route.only_post(base, post)
        return begun if keep else None, _in_frames(related)


@_part
def begin(base: jax.Array, posts: tuple[jax.Array, ...], *, how: How) -> Begun[Any, Any]:
    """The base, decomposed, and all posts prepared."""
    with how.chosen.scope():
        return how.route.begin(base, posts)


@_part
def relate_post(begun: Any, base: jax.Array, post: jax.Array, prepared: Any, *, how: How) -> InFrames:
    """A post and the base, which was decomposed before."""
    with how.chosen.scope():
        return _in_frames(how.route.with_post(begun, base, post, prepared))


@_part
def relate_posts(begun: Any, first: Post[Any, Any], second: Post[Any, Any], *, how: How) -> InFrames:
    """Two posts that were decomposed before, the first as the base of the second."""
    with how.chosen.scope():
        return _in_frames(how.route.between(begun, first, second)._replace(decomposed=None))


@_part
def pair_by_fallback(base: jax.Array, post: jax.Array, *, how: How) -> Arrays:
    """The frames of a pair that the method's route does not resolve."""
    return how.by_fallback(base, post)


@_part
def values_alone(
    base: jax.Array, posts: tuple[jax.Array, ...], *, how: How, pairs: tuple[tuple[int, int], ...]
) -> tuple[list[Arrays], list[Arrays]]:
    """The spectra of all posts, and of all pairs of posts, where no group needs singular vectors."""
    base, together = base.astype(how.dtype), jnp.stack([post.astype(how.dtype) for post in posts])
    changes = together - base
    s_base, *s_posts = kernels.singular_values(jnp.stack([base, *together]), method=how.method)
    s_changes = kernels.singular_values(changes, method=how.method) if how.change_values else [None] * len(posts)
    of_posts = [
        Spectra(s_base, s_post, s_change, kernels.frobenius(change))._asdict()
        for s_post, s_change, change in zip(s_posts, s_changes, changes, strict=True)
    ]
    of_pairs = [
        Spectra(s_posts[i], s_posts[j], None, kernels.frobenius(together[j] - together[i]))._asdict() for i, j in pairs
    ]
    return of_posts, of_pairs


def _in_frames(related: Related[Any]) -> InFrames:
    return InFrames(arrays_of(related.frames), related.decomposed, related.resolved)


def arrays_of(frames: kernels.Frames) -> Arrays:
    """Frames without the shape, which would make another program of each."""
    return {field.name: getattr(frames, field.name) for field in dataclasses.fields(frames) if field.name != "shape"}


def _pair_of(arrays: Arrays, rows: Side, top_k: int, *, pictures: bool = False) -> MatrixPair:
    shape = (rows, arrays["s_base"].shape[-1])
    spectra = Spectra(*(arrays[name] for name in Spectra._fields))
    frames = kernels.Frames(shape, **arrays) if "left" in arrays else None
    return MatrixPair(shape, spectra, frames, None, None, top_k, pictures)


# What random changes would show.


@_part
def controls_of_values(spectra: Arrays, *, rows: Side, top_k: int) -> Arrays:
    """Those of singular values."""
    pair = _pair_of(spectra, rows, top_k)
    return {"values_null": pair.values_null, "spectrum_null": pair.spectrum_null}


@_part
def controls_of_change(spectra: Arrays, *, rows: Side) -> Arrays:
    """What changes with the same singular values in random directions do to polar factors."""
    return {"own_law": _pair_of(spectra, rows, 1).own_law}


@_part
def controls_of_pair(spectra: Arrays, known: Arrays, *, rows: Side, top_k: int) -> Arrays:
    """The controls of what is read in frames, from what the two before gave."""
    pair = _pair_of(spectra, rows, top_k)
    vars(pair).update(known)
    return {"control": pair.control, "own_spreads": pair.own_spreads}


@_part
def controls_of_leading(spectra: Arrays, values: Arrays, *, rows: Side, top_k: int) -> Arrays:
    """Those of leading vectors, from those of singular values."""
    pair = _pair_of(spectra, rows, top_k)
    vars(pair).update(values)
    return {"leading_law": pair.leading_law}


# The groups whose readers look at what pairs have; others that do have it computed with what they read.
_OF_PAIRS = {"scaling", "rotation", "budget", "polar", "fit"}
_OF_LEADING = {"overlap", "shape"}


# Parts that are given nothing but spectra, and what others of them gave.
OF_SPECTRA = (controls_of_values, controls_of_change, controls_of_pair, controls_of_leading)


def controls_for(
    run: Callable[..., Arrays], arrays: Arrays, *, rows: dict[str, Any], measurement: Measurement
) -> Arrays:
    """What random changes would show, as far as groups read it: properties of `MatrixPair`, by name.

    Args:
        run: Carries out a part.
        arrays: Of the pair in frames, or of its spectra.
        rows: The operand of that name.
        measurement: What is measured.
    """
    spectra = {name: arrays[name] for name in Spectra._fields}
    groups, how = set(measurement.groups), {"operands": rows, "top_k": measurement.top_k}
    of_pairs, of_leading = bool(groups & _OF_PAIRS) or measurement.own_spectrum, bool(groups & _OF_LEADING)
    if not (of_pairs or of_leading):
        return {}
    controls = values = run(controls_of_values, spectra, **how)
    if of_pairs:
        own = {} if spectra["s_change"] is None else run(controls_of_change, spectra, operands=rows)
        known = values | own
        controls = known | run(controls_of_pair, spectra, known, **how)
    if of_leading:
        controls = controls | run(controls_of_leading, spectra, values, **how)
    return controls


# Readings.


@_part
def read_frames(arrays: Arrays, controls: Arrays, *, rows: Side, measurement: Measurement) -> Readings:
    """Everything but the sampled controls, and what depends on stored entries.

    Args:
        arrays: Of the pair in frames, or of its spectra.
        controls: What `controls_for` gave.
        rows: The longer side.
        measurement: What is measured.
    """
    pair = _pair_of(arrays, rows, measurement.top_k, pictures=measurement.pictures)
    vars(pair).update(controls)  # cached properties
    readings = {
        "change_norm": pair.spectra.change_norm,
        "s_base": pair.spectra.s_base,
        "s_post": pair.spectra.s_post,
        "rank_base": kernels.numerical_rank(pair.spectra.s_base, *pair.shape),
        "rank_post": kernels.numerical_rank(pair.spectra.s_post, *pair.shape),
        "control_reach": kernels.control_reach(pair.spectra.s_base, pair.spectra.change_norm, shape=pair.shape),
    }
    for group in measurement.groups:
        if not GROUPS[group].stored:
            for read in GROUPS[group].readers:
                readings |= read(pair)
    if measurement.own_spectrum:
        readings |= read_own_spectrum(pair, readings, own_spectrum_metrics(measurement.groups))
    return readings


@_part
def read_stored(base: jax.Array, post: jax.Array, spectra: Arrays, *, measurement: Measurement) -> Readings:
    """What depends on stored entries."""
    shape = (base.shape[-2], base.shape[-1])
    finite = jnp.all(jnp.isfinite(spectra["s_base"][..., 0]) & jnp.isfinite(spectra["s_post"][..., 0]))
    nonfinite = lax.cond(
        finite,
        lambda: (jnp.zeros(base.shape[:-2], jnp.int32),) * 2,
        lambda: (nonfinite_entries(base, measurement.dtype), nonfinite_entries(post, measurement.dtype)),
    )
    entries = StoredEntries.of(base, post)
    return _read_entries(entries, nonfinite, spectra, base, post, shape=shape, measurement=measurement)


@_part
def read_entries(
    entries: StoredEntries,
    nonfinite: tuple[jax.Array, jax.Array],
    spectra: Arrays,
    *,
    shape: tuple[int, int],
    measurement: Measurement,
) -> Readings:
    """The same of sums over the entries, where the matrices are in several places."""
    return _read_entries(entries, nonfinite, spectra, None, None, shape=shape, measurement=measurement)


def _read_entries(entries, nonfinite, spectra, base, post, *, shape, measurement):
    values = Spectra(*(spectra[name] for name in Spectra._fields))
    pair = MatrixPair(shape, values, None, base, post, measurement.top_k, measurement.pictures, entries)
    readings = dict(zip(("nonfinite_base", "nonfinite_post"), nonfinite, strict=True))
    for group in measurement.groups:
        if GROUPS[group].stored:
            for read in GROUPS[group].readers:
                readings |= read(pair)
    return readings


@_part
def cosine_of_changes(base: jax.Array, first: jax.Array, second: jax.Array, *, dtype: str) -> dict[str, jax.Array]:
    """Whether two posts went the same way from the base."""
    changes = (post.astype(dtype) - base.astype(dtype) for post in (first, second))
    return {"change_cosine": kernels.change_cosine(*changes)}


def nonfinite_entries(x: jax.Array, dtype: str) -> jax.Array:
    """How many entries of x, (..., m, n), are not finite in the working dtype, (...)."""
    return jnp.sum(~jnp.isfinite(x.astype(dtype)), axis=(-2, -1), dtype=jnp.int32)


# Sampled controls: one random change after another, in the memory of one.


@_part
def nothing_drawn(keys: jax.Array, *, measurement: Measurement) -> Readings:
    """What is sampled of every draw, (..., kinds * draws) for each metric: nothing yet."""
    count = len(kernels.RANDOM_CHANGES) * measurement.draws
    return {metric: jnp.zeros((*keys.shape[:-1], count), measurement.dtype) for metric in measurement.sampled}


@_part
def decompose_drawn(
    begun: Any,
    base: jax.Array,
    post: jax.Array,
    s_change: jax.Array,
    keys: jax.Array,
    *,
    index: Side,
    measurement: Measurement,
) -> InFrames:
    """The base with a random change."""
    how = How(measurement.method, measurement.dtype)
    with how.chosen.scope():
        drawn = drawn_post(base, post, s_change, keys, index, measurement)
        return _in_frames(how.route.with_new_post(begun, base, drawn)._replace(decomposed=None))


@_part
def drawn_by_fallback(
    base: jax.Array, post: jax.Array, s_change: jax.Array, keys: jax.Array, *, index: Side, measurement: Measurement
) -> Arrays:
    """The same for what the method's route does not resolve."""
    drawn = drawn_post(base, post, s_change, keys, index, measurement)
    return How(measurement.method, measurement.dtype).by_fallback(base, drawn)


@_part
def read_drawn(arrays: Arrays, drawn: Readings, *, rows: Side, index: Side, measurement: Measurement) -> Readings:
    """What was drawn, with one more draw in its place."""
    readings = read_sampled(_pair_of(arrays, rows, measurement.top_k), measurement)
    return {metric: values.at[..., index].set(readings[metric]) for metric, values in drawn.items()}


@_part
def sampled_columns(
    drawn: Readings, readings: Readings, change_norm: jax.Array, *, measurement: Measurement
) -> Readings:
    """The columns of the sampled controls, of the metrics that were read of the pair itself."""
    controls = controls_of({metric: jnp.moveaxis(x, -1, 0) for metric, x in drawn.items()}, measurement)
    return columns_of_controls(controls, readings, change_norm)
