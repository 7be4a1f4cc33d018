"""Merges: a post whose change is a linear combination of the changes of other posts of the same base.

The Gram matrix of the changes, from their sizes (`drift`) and the cosines between them (`change_cosine`), gives the
combination of least squares and what it leaves, matrix by matrix, without any weight being read again. A soup of
several models (arXiv:2203.05482), task vectors that were added (arXiv:2212.04089), and a post between the base and
another one, or beyond it, leave nothing but rounding, with the same weights in every matrix.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.effects import rows_that_count
from polarax.findings.words import listed, percent, plain, share_of
from polarax.metrics.tables import column

# Share of the change that a combination may leave, in length, and twice what rounding makes of it besides.
_LEFT = 0.01
# Weights of a merge are the same in all matrices: their spread over these, beyond what is left.
_ALIKE = 0.01
# So many of the matrices must be a combination; of fewer than this, nothing is said.
_NEARLY_ALL = 0.9
_FEWEST = 3
_MOST_PARTS = 4  # of a merge: more posts are seldom merged
_MOST_TRIED = 3000  # combinations: of many posts, those of fewer parts alone


class Merge(NamedTuple):
    """A post that is made of others."""

    post: str
    weights: Mapping[str, float]  # label -> weight of that post's change, in the median
    left: float  # share of the change that they leave, the largest of the matrices
    matrices: int  # that they explain
    judged: int
    alike: float  # largest cosine between the changes of two of its parts, in the median

    @property
    def sentence(self) -> str:
        """What it is made of."""
        over = f"up to {percent(self.left)} of its change, in {share_of(self.matrices, self.judged)}"
        if len(self.weights) > 1:
            parts = listed([f"{weight:.2f} of {label}" for label, weight in self.weights.items()])
            return f"{self.post} is the base plus {parts} (their changes), {over}: a merge."
        ((label, weight),) = self.weights.items()
        if abs(weight - 1) <= max(_LEFT, self.left):
            return f"{self.post} changed as {label} did, {over}."
        return f"{self.post} is the base plus {plain(weight, 3)} of the change of {label}, {over}."


def find_merges(posts: Mapping[str, pd.DataFrame], between: Mapping[tuple[str, str], pd.DataFrame]) -> list[Merge]:
    """The posts that are combinations of others.

    Of posts that depend on each other any is a combination of the rest: the one is told whose weights are positive,
    whose parts have least in common, and whose weights are smallest. Of what is made of others nothing else is made.

    Args:
        posts: Label -> `Run.frame()`.
        between: The labels of two of them -> the same of the second against the first.
    """
    labels = list(posts)
    if len(labels) < 2 or not between:
        return []
    changes = _changes(posts, between)
    found: dict[str, Merge] = {}
    for count in range(1, min(len(posts) - 1, _MOST_PARTS) + 1):
        if len(posts) * math.comb(len(posts) - 1, count) > _MOST_TRIED:
            break
        several = (
            _merge(labels, changes, post, parts)
            for post in labels
            for parts in itertools.combinations([label for label in labels if label != post], count)
            if not found.keys() & {post, *parts}
        )
        for merge in sorted(filter(None, several), key=_how_odd):
            if not found.keys() & {merge.post, *merge.weights}:
                found[merge.post] = merge
    return list(found.values())


def _how_odd(merge):
    """Merges come before what they were made of: their weights are positive and small, their parts independent."""
    weights = list(merge.weights.values())
    return min(weights) < 0, round(merge.alike, 1), max(map(abs, weights))


class _Changes(NamedTuple):
    """What is known of the changes of all posts, matrix by matrix; NaN where that is nothing."""

    grams: np.ndarray  # inner products over the squared norm of the base, (matrices, posts, posts)
    noise: np.ndarray  # squared norm of what rounding makes of each, in the same unit, (matrices, posts)


def _changes(posts, between):
    frames = {label: _by_name(frame[rows_that_count(frame)]) for label, frame in posts.items()}
    names = pd.Index([]).append([frame.index for frame in frames.values()]).unique()
    place = {label: i for i, label in enumerate(posts)}
    drift = np.stack([column(frame, "drift").reindex(names) for frame in frames.values()], axis=1)
    rounded = np.stack([column(frame, "rounding_share").reindex(names).fillna(0) for frame in frames.values()], axis=1)
    cosines = np.full((len(names), len(posts), len(posts)), np.nan)
    cosines[:, range(len(posts)), range(len(posts))] = 1
    for (first, second), frame in between.items():
        cosine = column(_by_name(frame), "change_cosine").reindex(names)
        cosines[:, place[first], place[second]] = cosines[:, place[second], place[first]] = cosine
    return _Changes(cosines * drift[:, :, None] * drift[:, None, :], (rounded * drift) ** 2)


def _by_name(frame):
    return frame.drop_duplicates("name").set_index("name")


def _merge(labels, changes, post, parts):
    """The post as a combination of these parts; None where it is not."""
    chosen = [*map(labels.index, parts), labels.index(post)]
    gram = changes.grams[:, chosen][:, :, chosen]
    known = ~np.isnan(gram).any(axis=(1, 2))
    if known.sum() < _FEWEST:
        return None
    gram, noise = gram[known], changes.noise[known][:, chosen]
    among, along, own = gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1]
    size = np.sqrt(np.diagonal(among, axis1=1, axis2=2))
    cosines = among / (size[:, :, None] * size[:, None, :])
    if np.linalg.eigvalsh(cosines).min() < _LEFT**2:  # some of the parts are combinations of each other
        return None
    weights = np.linalg.solve(cosines, (along / size)[..., None])[..., 0] / size
    left = np.sqrt(np.maximum(own - np.sum(weights * along, axis=1), 0) / own)
    allowed = _LEFT + 2 * np.sqrt(np.sum(noise, axis=1) / own)
    typical = np.median(weights, axis=0)
    # A weight errs by what is left, over how long its part of the change is.
    unlike = np.abs(weights - typical) * size / np.sqrt(own)[:, None]
    explained = (left <= allowed) & (unlike <= (_ALIKE + 3 * left)[:, None]).all(axis=1)
    matters = (np.abs(typical) * np.median(size / np.sqrt(own)[:, None], axis=0) > _LEFT).all()
    if explained.sum() < max(_FEWEST, _NEARLY_ALL * len(gram)) or not matters:
        return None
    between_parts = np.abs(cosines - np.eye(len(parts))).max(axis=(1, 2))
    return Merge(
        post=post,
        weights=dict(zip(parts, typical.tolist(), strict=True)),
        left=float(left[explained].max()),
        matrices=int(explained.sum()),
        judged=len(gram),
        alike=float(np.median(between_parts)),
    )
