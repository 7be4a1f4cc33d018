"""Stacks: matrices of one shape and dtype that run through one compiled program, and the memory that they take.

Each matrix comes with all the posts that have it, so that the base is read and decomposed once for them. Wide matrices
are read as their transposes, whose laws are the same with left and right exchanged: up and down projections share a
program.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polarax.kernels import RANDOM_CHANGES
from polarax.kernels.methods import method_named
from polarax.loaders import Pair
from polarax.planning.first_look_costs import block_columns, first_look_bytes, first_look_operations
from polarax.planning.measurement import Measurement

# What drawing random changes and reading them takes beside decomposing a pair, of m x n arrays and of n x n: XLA's
# buffer assignment.
_DRAWN_ARRAYS, _DRAWN_SQUARE_ARRAYS = 6, 6

# Of the memory given, what compiled programs and libraries take (some 350 MB, measured), and what compiling the next
# ones besides takes while a stack is computed, which is done only if there is plenty; at most this share of it all.
_PROGRAM_BYTES, _COMPILING_BYTES = 3 * 2**27, 2**29
PLENTY_BYTES = 2**31
_PROGRAM_SHARE = 3

# Matrices that are not stored as they are computed are read beside their place, and copied into it: of so many bytes
# together, or one of them, at a time.
BESIDE_BYTES = 64 * 2**20

# Small matrices: more in one stack saves nothing, and each finished stack is progress that is kept.
_LARGEST_STACK = 32

# Posts of one go: more save nothing that counts, of the one decomposition of the base.
_MOST_POSTS = 16

# A matrix of the base with each post that has it.
Member = tuple[Pair, ...]


class Stack(NamedTuple):
    """Matrices of one shape and dtype, measured together."""

    number: int  # in the order of the run
    pairs: tuple[Pair, ...]  # of the base and the first of the posts
    size: int  # length of the stack, >= len(pairs): the rest is padding, so that one program serves a shape
    lanes: int = 1  # equal parts of it that are computed side by side, each by the same program
    work_bytes: int = 0  # estimated memory that one matrix takes while it is computed
    beside_bytes: int = 0  # at most so much is read beside the stack, and then copied into it
    draws: int = 0  # random changes of each kind, for the sampled controls
    posts: tuple[int, ...] = (0,)  # places of the posts that have these matrices
    more: tuple[tuple[Pair, ...], ...] = ()  # of the base and each of the other posts
    columns: int = 0  # that a first look iterates on; 0 for a full analysis
    devices: int = 1  # that the stack is divided over
    start: int = 0  # of a piece: place of its first matrix within the whole stack
    row_devices: int = 1  # devices that the rows of each matrix are divided over, one matrix after another

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of each matrix as it is computed: m >= n."""
        return _tall(self.pairs[0])

    @property
    def transposed(self) -> tuple[bool, ...]:
        """For each pair, whether it is stored as the transpose of what is computed."""
        return tuple(pair.shape != self.shape for pair in self.pairs)

    @property
    def program(self) -> tuple:
        """Shape and dtypes of the matrices: what a compiled program is made for, beside the length."""
        return self.shape, self.pairs[0].dtype_base, *(pairs[0].dtype_post for pairs in self.pairs_of_posts)

    @property
    def label(self) -> str:
        """Name of the stack in the run directory."""
        return f"{self.number:04d}-{self.shape[0]}x{self.shape[1]}"

    @property
    def pairs_of_posts(self) -> tuple[tuple[Pair, ...], ...]:
        """The pairs of each of `posts`."""
        return (self.pairs, *self.more)

    @property
    def members(self) -> tuple[Member, ...]:
        """Each matrix's pairs with all posts."""
        return tuple(zip(*self.pairs_of_posts, strict=True))

    def piece(self, start: int, count: int, *, size: int | None = None) -> "Stack":
        """Some of the matrices, in the order of the whole, whose number, shape and label they keep.

        Args:
            start: Place of the first one within this stack.
            count: How many.
            size: Length of the piece, where pieces of several lengths share a program; otherwise the least there is.

        Raises:
            ValueError: There are no such matrices, or the size is too small for them.
        """
        if start < 0 or count < 1 or start + count > len(self.pairs):
            raise ValueError(f"A piece of {count} from {start} on is not within {len(self.pairs)} matrices.")
        size = count if size is None else size
        if size < count:
            raise ValueError(f"A piece of {count} matrices does not fit into a size of {size}.")
        lanes = min(self.lanes, size)
        multiple = math.lcm(self.devices, lanes)
        pairs, *more = (pairs[start : start + count] for pairs in self.pairs_of_posts)
        return self._replace(
            pairs=pairs,
            more=tuple(more),
            size=math.ceil(size / multiple) * multiple,
            lanes=lanes,
            start=self.start + start,
        )

    def of_post(self, place: int) -> "Stack":
        """What is compared of one of `posts`."""
        return self._replace(pairs=self.pairs_of_posts[self.posts.index(place)], posts=(place,), more=())

    def between(self, first: int, second: int) -> "Stack":
        """What is compared of two of `posts`, the first as the base of the second."""
        both = (self.pairs_of_posts[self.posts.index(place)] for place in (first, second))
        pairs = tuple(pair_posts(*pairs) for pairs in zip(*both, strict=True))
        return self._replace(pairs=pairs, posts=(second,), more=())

    def part(self, start: int, count: int) -> "Stack":
        """The whole stack where all are asked for, else the `piece`."""
        return self if count == len(self.pairs) else self.piece(start, count)

    @property
    def bytes_stored(self) -> int:
        """Bytes to read for the stack, base and posts."""
        return sum(member[0].bytes_base + sum(pair.bytes_post for pair in member) for member in self.members)

    @property
    def bytes_read(self) -> int:
        """Memory that the stack is read into, its padding included, and what is read beside it."""
        return self.size * stored_bytes(self.members[0]) + self.beside_bytes

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal."""
        counted = {"draws": self.draws, "posts": len(self.posts)}
        if self.columns:
            return len(self.pairs) * first_look_operations(*self.shape, columns=self.columns, **counted)
        return len(self.pairs) * pair_operations(*self.shape, **counted)


def pair_posts(first: Pair, second: Pair) -> Pair:
    """The pair of two posts of one base matrix, the first as the base of the second."""
    return second._replace(
        dtype_base=first.dtype_post, base=first.post, stored_base=first.stored_post, bytes_base=first.bytes_post
    )


def pair_operations(rows: int, cols: int, *, draws: int = 0, posts: int = 1) -> float:
    """Nominal floating-point operations of one pair: two thin SVDs with vectors and one without.

    Each further post takes one SVD less. With draws, one SVD with vectors and the products of a pair for each of their
    three kinds and each post besides.

    6 m n^2 + 20 n^3 with vectors and 2 m n^2 + 2 n^3 without (R-SVD; Golub and Van Loan, Matrix Computations, 4th
    edition, section 8.6), and five products. A common yardstick for rates, not what a given algorithm spends.
    """
    m, n = max(rows, cols), min(rows, cols)
    with_vectors, values_alone = 6 * m * n**2 + 20 * n**3, 2 * m * n**2 + 2 * n**3
    products = 2 * m * n**2 * 2 + 2 * n**3 * 3
    drawn = len(RANDOM_CHANGES) * draws * (with_vectors + products)
    return float(with_vectors + posts * (with_vectors + values_alone + products + drawn))


def make_stacks(
    found: Iterable[Mapping[int, Pair]],
    memory_bytes: int,
    work_of: Callable[[Member], int],
    devices: int,
    most_lanes: int,
    *,
    together: bool,
) -> Iterator[Stack]:
    """The stacks of matrices, each matrix given as its pairs by the place of their post.

    Args:
        found: Matrices in model order.
        memory_bytes: What the stacks in flight may take; a single larger matrix makes a stack of its own.
        work_of: `work_bytes` of a matrix.
        devices: Devices that a stack is divided over: its length is a multiple of their number.
        most_lanes: Parts of a stack to compute side by side on one device, where memory allows.
        together: Whether all posts of a matrix have to be in one stack.
    """
    groups: dict[tuple, list[Member]] = {}
    for by_post in found:
        first = next(iter(by_post.values()))
        kind = tuple((place, pair.dtype_post) for place, pair in by_post.items())
        groups.setdefault((_tall(first), first.dtype_base, kind), []).append(tuple(by_post.values()))
    number, working_before = 0, 0
    for (_, _, kind), whole in groups.items():
        available = memory_bytes - program_bytes(memory_bytes)
        for start, count in _shares(whole, available, work_of, together):
            members = [member[start : start + count] for member in whole]
            posts = tuple(place for place, _ in kind[start : start + count])
            working_set, beside = work_of(members[0]), max(map(beside_bytes, members))
            in_flight = 2 * stored_bytes(members[0])  # of the stack at work, and of the next one
            free = available - 2 * beside
            lanes = max(1, min(most_lanes, len(members), free // (working_set + in_flight)))
            working = max(devices, lanes) * working_set
            # The first stack of a shape is read while the last one of the shape before it is still at work.
            fits = max(1, min(_LARGEST_STACK, (free - max(working, working_before)) // in_flight))
            lanes = min(lanes, fits)
            working_before = working
            multiple = math.lcm(devices, lanes)
            fits = max(multiple, fits - fits % multiple)
            length = math.ceil(len(members) / math.ceil(len(members) / fits))
            size = math.ceil(length / multiple) * multiple
            for begin in range(0, len(members), size):
                pairs, *more = zip(*members[begin : begin + size], strict=True)
                yield Stack(
                    number, pairs, size, lanes, working_set, beside, posts=posts, more=tuple(more), devices=devices
                )
                number += 1


def _shares(
    members: Sequence[Member], available: int, work_of: Callable[[Member], int], together: bool
) -> Iterator[tuple[int, int]]:
    """(start, count) of the posts that are measured in one go: all, or even shares of as many as memory has room for.

    At most so many that they take half of it where one matrix is at work, which leaves room for what is read ahead.
    """
    posts = len(members[0])
    count = posts
    if not together:
        while count > 1 and _needs(members, count, work_of) > available:
            count -= 1
        count = math.ceil(posts / math.ceil(posts / min(count, _MOST_POSTS)))
    for start in range(0, posts, count):
        yield start, min(count, posts - start)


def _needs(members, count, work_of):
    first = members[0][:count]
    return work_of(first) + 2 * (stored_bytes(first) + max(beside_bytes(member[:count]) for member in members))


def work_bytes(measurement: Measurement, between: bool, member: Member) -> int:
    """Memory that a matrix takes while it is computed with its posts.

    Args:
        measurement: What is measured.
        between: Whether the posts are also read against each other.
        member: The matrix.
    """
    m, n = _tall(member[0])
    posts, draws = len(member), measurement.draws
    stacked = math.prod(member[0].shape) * _itemsize_of_posts(member) * posts if posts > 1 else 0  # in one dtype
    if measurement.quick:
        return first_look_bytes(
            m,
            n,
            columns=block_columns(m, n, measurement.top_k),
            stored_itemsize=max(member[0].dtype_base.itemsize, *(pair.dtype_post.itemsize for pair in member)),
            posts_bytes=stacked,
            between=between,
            draws=draws,
        )
    drawn = 8 * n * (_DRAWN_ARRAYS * m + _DRAWN_SQUARE_ARRAYS * n) if draws else 0
    # Several posts that are read against each other leave their frames.
    several = stacked + between * 8 * n**2 * posts if posts > 1 else 0
    decomposed = method_named(measurement.method).work_bytes(
        m,
        n,
        itemsize=np.dtype(measurement.dtype).itemsize,
        stored_bytes=stored_bytes(member),
        posts=posts,
        between=between,
    )
    return decomposed + drawn + several


def _itemsize_of_posts(member: Member) -> int:
    sizes = {pair.dtype_post.itemsize for pair in member}
    return max(sizes) if len(sizes) == 1 else max(4, *sizes)


def program_bytes(memory_bytes: int) -> int:
    """What of the memory given is left to programs and libraries."""
    wanted = _PROGRAM_BYTES + (_COMPILING_BYTES if memory_bytes >= PLENTY_BYTES else 0)
    return min(wanted, memory_bytes // _PROGRAM_SHARE)


def beside_bytes(member: Member) -> int:
    """Memory beside a stack that reading this matrix, in base and posts, into it takes."""
    pair = member[0]
    elements = math.prod(pair.shape)
    one = stored = 0
    as_stored = pair.shape[0] >= pair.shape[1]
    sides = [(pair.base, pair.dtype_base, pair.bytes_base)]
    sides += [(side.post, side.dtype_post, side.bytes_post) for side in member]
    for view, dtype, nbytes in sides:
        as_stored = as_stored and view.is_plain
        # What is read of the tensor; several matrices may be cut from it.
        whole = (math.prod(view.factors) if view.factors else elements) * dtype.itemsize
        one = max(one, whole)
        # What is decoded is read as it is stored.
        if nbytes != elements * dtype.itemsize:
            stored = max(stored, nbytes)
    return _read_beside(stored) + (0 if as_stored else _read_beside(one))


def _read_beside(nbytes):
    """Memory for matrices of so many bytes, of which several are read at a time if they are small."""
    return max(nbytes, min(BESIDE_BYTES, _LARGEST_STACK * nbytes))


def _tall(pair: Pair) -> tuple[int, int]:
    return max(pair.shape), min(pair.shape)


def stored_bytes(member: Member) -> int:
    """Bytes of a matrix, base and posts, as it is read; in the store it may take fewer."""
    return math.prod(member[0].shape) * (member[0].dtype_base.itemsize + sum(one.dtype_post.itemsize for one in member))
