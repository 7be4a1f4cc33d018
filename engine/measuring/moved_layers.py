"""Layers of the post that are other layers of the base, found by content: inserted, dropped or repeated by a merge.

Asked only of matrices that have little of their partner, or have none: a sample of each is held against samples of all
matrices of the base of the same role and shape, and what agrees is read whole.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders import Checkpoint, Pair, RoleMap, Skipped, View
from polarax.loaders.matrices import take_inventory
from polarax.loaders.quantisation import quantised
from polarax.loaders.roles import OTHER
from polarax.metrics.relation import MovedLayer, other_matrix

# What is read of each matrix, in one piece: independent weights of so many entries have a cosine of 0 +- 0.044.
_SAMPLE = 512
_SAMPLES_AT_ONCE = 256
_LIKE = 0.7  # cosine of two samples from which on the matrices are read
_READ_AT_MOST = 3  # of those that are like it, for each matrix
# The largest drift at which a matrix is another one, trained; independent ones of one size have the square root of 2.
_MOST_DRIFT = 0.5
_BLOCK_BYTES = 16 * 2**20  # of rows whose difference is taken together


class Moved(NamedTuple):
    """What was found."""

    relations: Mapping[str, str]  # name of a row -> what its post is
    layers: tuple[MovedLayer, ...]  # in the post's order
    missing: tuple[int, ...]  # layers of the base that are in no layer of the post, where some have moved


class _Target(NamedTuple):
    """A matrix of the post whose origin is asked for."""

    name: str | None  # of its row; None if it has no partner
    view: View
    layer: int | None
    role: str
    expert: int | None

    @property
    def key(self) -> str:
        """What tells it from all others of the post."""
        return self.view.name


class _Match(NamedTuple):
    view: View  # of the base
    drift: float


class LayerSearch:
    """Looks for matrices of posts in one base, whose samples are read once.

    Args:
        base: The checkpoint before training.
        role_map: The user's own table of names.
    """

    def __init__(self, base: Checkpoint, role_map: RoleMap | None = None):
        self._base, self._role_map = base, role_map
        self._samples: dict[str, np.ndarray] = {}  # by name of the matrix
        self._known: tuple[Mapping[str, Any] | None, list[View]] | None = (
            None  # its matrices, by what config they rest on
        )

    def find(
        self, post: Checkpoint, pairs: Sequence[Pair], skipped: Iterable[Skipped], strange: frozenset[str]
    ) -> Moved:
        """Where the strange matrices of a post, and those without partner, come from.

        Args:
            post: The checkpoint after training.
            pairs: What was compared.
            skipped: What was not.
            strange: Names of the rows whose post has little of the base.

        Raises:
            CheckpointError: A checkpoint can no longer be read.
        """
        reasons = [row.reason for row in skipped]
        if not strange and not any(reason.startswith("only in ") for reason in reasons):
            return Moved({}, (), ())
        views_base = self._views_of_base(post)
        targets = [
            _Target(pair.name, pair.post, pair.layer, pair.role, pair.expert) for pair in pairs if pair.name in strange
        ]
        paired = {pair.post.name for pair in pairs}
        targets += [
            _Target(None, view, view.layer, view.role, view.expert)
            for view in _views(post, self._role_map, self._base.config if post.config is None else None)
            if view.name not in paired and view.layer is not None
        ]
        known = {pair.base.name: pair for pair in pairs}
        places = collections.defaultdict(list)
        for view in views_base:
            # Names of the base may be known to the post's table alone.
            pair = known.get(view.name)
            places[(view.role if pair is None else pair.role), view.shape].append(view)
        matches = self._matches(post, targets, places)
        of_layers = _layers_of(targets, matches)
        matches |= self._by_layer(post, [target for target in targets if target.key not in matches], places, of_layers)
        at_home = [pair for pair in pairs if pair.name not in strange]
        layers = _moved_layers(targets, matches, at_home)
        whole = not any(reason.startswith("not selected") for reason in reasons)
        return Moved(
            {
                target.name: _words(target, matches[target.key].view)
                for target in targets
                if target.name is not None and target.key in matches
            },
            layers,
            _missing_layers(layers, views_base, matches, at_home) if layers and whole else (),
        )

    def _views_of_base(self, post):
        """The matrices of the base; listed anew only if that rests on a configuration which only the posts have."""
        config = post.config if self._base.config is None else None
        if self._known is None or self._known[0] != config:
            self._known = config, _views(self._base, self._role_map, config)
        return self._known[1]

    def _matches(self, post, targets, places):
        """Name in the post -> what it is in the base, of those whose sample says so and whose whole agrees."""
        matches: dict[str, _Match] = {}
        groups = collections.defaultdict(list)
        for target in targets:
            groups[target.role, target.view.shape].append(target)
        for key, members in groups.items():
            candidates = places.get(key, ())
            for start in range(0, len(members) if candidates else 0, _SAMPLES_AT_ONCE):
                some = members[start : start + _SAMPLES_AT_ONCE]
                samples = _read_samples(post, [target.view for target in some])
                for target, sample in zip(some, samples, strict=True):
                    match = self._confirm(post, target, self._alike(target, sample, candidates))
                    if match is not None:
                        matches[target.key] = match
        return matches

    def _alike(self, target, sample, candidates):
        """The views of the base whose samples are most like it, the likest first, and of equals the nearest."""
        norm = np.linalg.norm(sample)
        if not 0 < norm < math.inf:
            return []
        comparable = [view for view in candidates if _lies_alike(view, target.view)]
        unread = [view for view in comparable if view.name not in self._samples]
        for start in range(0, len(unread), _SAMPLES_AT_ONCE):
            some = unread[start : start + _SAMPLES_AT_ONCE]
            self._samples |= zip((view.name for view in some), _read_samples(self._base, some), strict=True)
        comparable = [view for view in comparable if self._samples[view.name].shape == sample.shape]
        if not comparable:
            return []
        others = np.stack([self._samples[view.name] for view in comparable])
        norms = np.linalg.norm(others, axis=1)
        cosines = others @ sample / np.where(norms > 0, norms, np.inf) / norm
        like = [(-round(float(cosines[i]), 5), *_distance(target, comparable[i]), i) for i in range(len(comparable))]
        return [comparable[i] for *_, i in sorted(like)[:_READ_AT_MOST] if cosines[i] > _LIKE]

    def _by_layer(self, post, targets, places, of_layers):
        """The same for those whose sample lies otherwise in the two, as parts of fused tensors do: by their layer."""
        matches = {}
        for target in targets:
            layer = of_layers.get((_family(target.view.tensor, target.layer), target.layer))
            there = [
                view
                for view in places.get((target.role, target.view.shape), ())
                if layer is not None and view.layer == layer and view.expert == target.expert
            ]
            match = self._confirm(post, target, there[:1])
            if match is not None:
                matches[target.key] = match
        return matches

    def _confirm(self, post, target, views):
        """The first of the views that the target is, both read whole; None if it is at home, or none of them."""
        if not views or _at_home(target, views[0]):
            return None
        values = target.view.read(post).result()
        for view in views:
            if not _at_home(target, view):
                drift = _drift(view.read(self._base).result(), values)
                if drift < _MOST_DRIFT:
                    return _Match(view, drift)
        return None


def _views(checkpoint, role_map, config):
    """The matrices of a checkpoint that can be read and whose role is known."""
    unread = quantised(checkpoint)
    inventory = take_inventory(checkpoint, role_map, config)
    return [
        view
        for name, views in inventory.views.items()
        if name not in unread and name not in inventory.tied
        for view in views
        if view.role != OTHER
    ]


def _at_home(target, view):
    return (view.layer, view.expert) == (target.layer, target.expert)


def _distance(target, view):
    """What tells equals apart: the same expert first, then the nearest layer."""
    far = abs((view.layer or 0) - (target.layer or 0))
    return view.expert != target.expert, far, view.layer or 0


def _read_samples(checkpoint: Checkpoint, views: Sequence[View]) -> list[np.ndarray]:
    """Some entries from the middle of what each is read from, (at most `_SAMPLE`,), float32."""
    reads = [checkpoint.read(view.tensor, _middle(view, checkpoint.shape(view.tensor))) for view in views]
    return [read.result().ravel()[:_SAMPLE].astype(np.float32) for read in reads]


def _middle(view: View, shape: Sequence[int]) -> tuple[slice, ...]:
    """An index of `_SAMPLE` entries or more that lie together, within what is read for a view."""
    cuts = view.slices or ()
    index: list[slice] = []
    for axis, size in enumerate(view.read_shape(shape)):
        start, _, step = cuts[axis].indices(shape[axis]) if axis < len(cuts) else (0, size, 1)
        behind = math.prod(view.read_shape(shape)[axis + 1 :])
        count = min(size, max(1, math.ceil(_SAMPLE / max(1, behind))))
        low = start + (size - count) // 2 * step
        index.append(slice(low, low + (count - 1) * step + 1, step) if step > 0 else cuts[axis])
        if count > 1:
            break
    return tuple(index)


def _lies_alike(view, target):
    """Whether samples of the two are of the same entries."""
    return (view.factors, view.cut, view.order, view.rows) == (target.factors, target.cut, target.order, target.rows)


def _words(target, view):
    return other_matrix(target.layer, target.expert, of_layer=view.layer, of_expert=view.expert)


def _drift(base: np.ndarray, post: np.ndarray) -> float:
    """||post - base|| / ||base||, in float64, block by block; infinite for a base of zeros."""
    squares = change = 0.0
    rows = max(1, _BLOCK_BYTES // (8 * max(1, base.shape[1])))
    for start in range(0, len(base), rows):
        x, y = (array[start : start + rows].astype(np.float64) for array in (base, post))
        squares += float(np.vdot(x, x))
        change += float(np.vdot(y - x, y - x))
    return math.sqrt(change / squares) if squares > 0 else math.inf


def _family(tensor: str, layer: int | None) -> str:
    """What tells towers apart whose layers have the same numbers: the name in front of the layer's."""
    found = re.search(rf"(?<![0-9])0*{layer}(?![0-9])", tensor) if layer is not None else None
    return tensor[: found.start()] if found else ""


def _place(target):
    return _family(target.view.tensor, target.layer), target.layer


def _layers_of(targets, matches):
    """(Family, layer) of the post -> the layer of the base that most of its matches are in."""
    counts: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for target in targets:
        if target.key in matches and target.layer is not None:
            counts[_place(target)][matches[target.key].view.layer] += 1
    return {place: counter.most_common(1)[0][0] for place, counter in counts.items()}


def _moved_layers(targets, matches, at_home):
    """The layers that are another one as a whole: in more than half of their matrices."""
    total = collections.Counter(_place(target) for target in targets)
    total.update((_family(pair.post.tensor, pair.layer), pair.layer) for pair in at_home)
    layers = []
    for place, layer in _layers_of(targets, matches).items():
        there = [
            matches[target.key].drift
            for target in targets
            if target.key in matches and _place(target) == place and matches[target.key].view.layer == layer
        ]
        if layer is not None and layer != place[1] and 2 * len(there) > total[place]:
            layers.append(MovedLayer(place[1], layer, len(there), max(there)))
    return tuple(sorted(layers))


def _missing_layers(layers, views_base, matches, at_home):
    families = {_family(match.view.tensor, match.view.layer) for match in matches.values()}
    there = {view.layer for view in views_base if _family(view.tensor, view.layer) in families}
    used = {layer.base for layer in layers} | {match.view.layer for match in matches.values()}
    return tuple(sorted(there - used - {pair.base.layer for pair in at_home} - {None}))
