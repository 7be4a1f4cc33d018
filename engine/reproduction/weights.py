"""Decoders with other weights in some places: the post's, with matrices edited one at a time or changed at random."""

import concurrent.futures
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from polarax.editing.settings import EditSettings
from polarax.editing.trees import edit_stack
from polarax.errors import UsageError
from polarax.evaluation import Decoder
from polarax.evaluation.decoder.stored import EMBEDDING, HEAD, MATRICES
from polarax.loaders import Checkpoint, Pair
from polarax.measuring.sampled_controls import matrix_key
from polarax.planning.devices import most_lanes, shared_cores, working_dtype

_LAYERS = "layers"


class Place(NamedTuple):
    """Where a matrix stands among a decoder's parameters."""

    path: str  # dotted
    layer: int | None  # of a parameter that stacks all layers

    def shown(self, array: np.ndarray) -> np.ndarray:
        """The matrix in an array of the parameter, (out, in): a view."""
        part = array if self.layer is None else array[self.layer]
        return part if self.path == EMBEDDING else part.T


class Change(NamedTuple):
    """What was done to one matrix, as it is computed with."""

    name: str
    norm: float  # Frobenius norm of the change from the post
    of_post: float  # that of the post's weight


def place_of(pair: Pair, layers: int) -> Place:
    """The place of a matrix in a decoder of so many layers.

    Raises:
        UsageError: The decoder has none for it.
    """
    view = pair.post
    if view.layer is None and view.role in ("embed", "head"):
        return Place(EMBEDDING if view.role == "embed" else HEAD, None)
    if view.role in MATRICES and view.expert is None and view.layer is not None and view.layer < layers:
        return Place(f"{_LAYERS}.{MATRICES[view.role]}.kernel", view.layer)
    raise UsageError(f"{pair.name}: the decoder has no such matrix; choose --roles among those it has.")


def parameters(model: Decoder) -> dict[str, Any]:
    """The arrays of a decoder by dotted names."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def with_parameters(model: Decoder, replaced: Mapping[str, Any]) -> Decoder:
    """The decoder with other arrays in some places; all others are shared with it."""
    graph, state = nnx.split(model, nnx.Param)
    flat = [
        (path, leaf.replace(replaced[".".join(map(str, path))]) if ".".join(map(str, path)) in replaced else leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def edited(
    model: Decoder,
    base: Checkpoint,
    post: Checkpoint,
    pairs: Sequence[Pair],
    settings: EditSettings | None,
) -> tuple[Decoder, list[Change]]:
    """The post's decoder with edited matrices; beside it, a few matrices are in memory at a time.

    Args:
        model: The post's decoder.
        base: Its base.
        post: The checkpoint that it was read from.
        pairs: Which matrices.
        settings: Which edit; None puts the base's weights in their place.
    """

    def matrix(pair: Pair, _: np.ndarray) -> np.ndarray:
        of_base = np.asarray(pair.base.read(base).result())
        if settings is None:
            return of_base
        return _edited(of_base, np.asarray(pair.post.read(post).result()), pair, settings)

    return _changed(model, pairs, matrix)


def randomly_changed(
    model: Decoder, pairs: Sequence[Pair], norms: Mapping[str, float], seed: int
) -> tuple[Decoder, list[Change]]:
    """The decoder with W + t G in place of every W, G standard normal and ||t G|| as given.

    Args:
        model: The post's decoder.
        pairs: Which matrices.
        norms: Of the changes, by the names of the matrices.
        seed: Of the draws; each matrix has its own.
    """

    def matrix(pair: Pair, current: np.ndarray) -> np.ndarray:
        drawn = np.random.default_rng(matrix_key(seed, pair.name)).standard_normal(current.shape)
        return current + drawn * (norms[pair.name] / np.linalg.norm(drawn))

    return _changed(model, [pair for pair in pairs if norms.get(pair.name)], matrix)


def _edited(base: np.ndarray, post: np.ndarray, pair: Pair, settings: EditSettings) -> np.ndarray:
    working = working_dtype("auto")
    with jax.enable_x64(working == "float64"):
        stacks = (array[None].astype(working) for array in (base, post))
        keys = matrix_key(settings.seed, pair.name)[None]
        return np.asarray(edit_stack(*stacks, keys, settings=settings, factor=settings.factor_of(pair.role))[0][0])


def _changed(
    model: Decoder, pairs: Sequence[Pair], matrix: Callable[[Pair, np.ndarray], np.ndarray]
) -> tuple[Decoder, list[Change]]:
    """The decoder with matrix(pair, its weight) in the place of each weight, parameter by parameter."""
    found, replaced = parameters(model), {}
    placed = sorted(((place_of(pair, model.config.layers), pair) for pair in pairs), key=lambda both: both[0][:1])
    changes: list[Change] = []
    lanes = most_lanes()
    with concurrent.futures.ThreadPoolExecutor(lanes) as threads, shared_cores(lanes):
        for path, group in itertools.groupby(placed, key=lambda both: both[0].path):
            array = np.array(found[path])

            def change(both: tuple[Place, Pair], array: np.ndarray = array) -> Change:
                place, pair = both
                weight = place.shown(array)
                before = weight.astype(np.float64)
                weight[...] = matrix(pair, before).astype(array.dtype)
                after = weight.astype(np.float64)
                return Change(pair.name, float(np.linalg.norm(after - before)), float(np.linalg.norm(before)))

            changes += threads.map(change, list(group))
            replaced[path] = jax.device_put(array, found[path].sharding)
    return with_parameters(model, replaced), changes


def drift(changes: Sequence[Change]) -> float:
    """||change|| / ||post|| over all changed matrices together; 0 of none."""
    below = math.fsum(change.of_post**2 for change in changes)
    return math.sqrt(math.fsum(change.norm**2 for change in changes) / below) if below else 0.0
