"""Whether two matrices have the same entries in another order of rows or columns, or with other signs: bit for bit."""

import collections
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from polarax.metrics.relation import Relation

_BLOCK_BYTES = 16 * 2**20  # of rows that are looked at together

# Turns rows into what tells them apart.
Lines = Callable[[np.ndarray], np.ndarray]


def find_arrangement(base: np.ndarray, post: np.ndarray) -> Relation | None:
    """Which rearrangement of the base the post is.

    Lines that are equal have equal digests; what digests suggest is confirmed entry by entry. Of two dtypes the base is
    cast to the post's, or the post to the base's, whichever is smaller: as saving it would have.

    Args:
        base: (m, n), finite, in a floating-point dtype.
        post: (m, n), the same.

    Returns:
        None where it is none; zeros count as equal whatever their sign.
    """
    x, y = _bits(*_in_one_dtype(base, post))
    if _checksum(x) != _checksum(y):  # of magnitudes, in any order
        return None
    for turned, permuted in ((False, Relation.ROWS_PERMUTED), (True, Relation.COLUMNS_PERMUTED)):
        if _order(_turn(turned, x, y), _as_they_are) is not None:
            return permuted
    relations = (
        (False, Relation.ROWS_FLIPPED, Relation.ROWS_PERMUTED_AND_FLIPPED),
        (True, Relation.COLUMNS_FLIPPED, Relation.COLUMNS_PERMUTED_AND_FLIPPED),
    )
    for turned, flipped, permuted in relations:
        order = _order(_turn(turned, x, y), _without_sign)
        if order is not None:
            return flipped if (order == np.arange(len(order))).all() else permuted
    rows, columns = (_order(_turn(turned, x, y), _sorted, confirm=False) for turned in (False, True))
    if rows is not None and columns is not None and _equal(x[rows][:, columns], y, _as_they_are):
        return Relation.BOTH_PERMUTED
    return None


def _in_one_dtype(base, post):
    if base.dtype == post.dtype:
        return base, post
    if post.dtype.itemsize <= base.dtype.itemsize:
        return base.astype(post.dtype), post
    return base, post.astype(base.dtype)


def _bits(*matrices):
    return [np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in matrices]


def _turn(turned: bool, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns as rows."""
    return (np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)) if turned else (x, y)


def _order(both: tuple[np.ndarray, np.ndarray], lines: Lines, confirm: bool = True) -> np.ndarray | None:
    """For each row of y the row of x that is the same as `lines` gives them; of equal ones its own before others."""
    x, y = both
    digests, digests_post = _digests(x, lines), _digests(y, lines)
    if collections.Counter(digests) != collections.Counter(digests_post):
        return None
    own = np.array([one == other for one, other in zip(digests, digests_post, strict=True)])
    places = collections.defaultdict(list)
    for place in np.flatnonzero(~own):
        places[digests[place]].append(place)
    order = np.array([i if own[i] else places[digest].pop() for i, digest in enumerate(digests_post)])
    return order if not confirm or _equal(x[order], y, lines) else None


def _equal(x, y, lines):
    return all(np.array_equal(lines(some), lines(others)) for some, others in zip(_blocks(x), _blocks(y), strict=True))


def _digests(x, lines):
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for block in _blocks(x) for row in lines(block)]


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    count = max(1, _BLOCK_BYTES // max(1, x[:1].nbytes))
    for start in range(0, len(x), count):
        yield x[start : start + count]


def _checksum(x):
    return sum(int(np.sum(_magnitudes(block), dtype=np.uint64)) for block in _blocks(x)) % 2**64


def _sign(x):
    return x.dtype.type(1 << (8 * x.itemsize - 1))


def _magnitudes(x):
    return x & ~_sign(x)


def _as_they_are(x: np.ndarray) -> np.ndarray:
    """Zeros without sign."""
    return np.where(_magnitudes(x) == 0, x.dtype.type(0), x)


def _without_sign(x: np.ndarray) -> np.ndarray:
    """Each row times the sign of its first entry that is not zero."""
    first = np.argmax(_magnitudes(x) != 0, axis=1)[:, None]
    return _as_they_are(x ^ (np.take_along_axis(x, first, axis=1) & _sign(x)))


def _sorted(x: np.ndarray) -> np.ndarray:
    """Whatever the order of the columns."""
    return np.sort(_as_they_are(x), axis=1)
