"""What a comparison will do, from the headers alone: stacks, bytes, operations, memory.

A stack is a number of matrices of one shape and dtype that run through one compiled program. Wide matrices are read as
their transposes, whose laws are the same with left and right exchanged: up and down projections share a program.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polarax.kernels import RANDOM_CHANGES
from polarax.loaders import Checkpoint, Pair, RoleMap, Skipped, pair_checkpoints
from polarax.selection import Selection

# What the decomposition of one pair holds at once. By Gram matrices: n x n arrays, blocks of rows, both in float64, and
# the pair as it is stored once more; by thin SVDs: m x n arrays, base, post, change, their factors, copies in LAPACK's
# layout and its workspace. Counted in XLA's buffer assignment, and measured as peak resident memory.
_SQUARE_ARRAYS, _BLOCK_ARRAYS = 15, 9
_WHOLE_ARRAYS = 12
# What drawing random changes and reading them takes besides, of m x n arrays and of n x n: XLA's buffer assignment.
_DRAWN_ARRAYS, _DRAWN_SQUARE_ARRAYS = 6, 6
_BLOCK_ROWS = 1024  # of a block, or n

# Of the memory given, what compiled programs and libraries take (some 350 MB, measured), and what compiling the next
# ones besides takes while a stack is computed, which is done only if there is plenty; at most this share of it all.
_PROGRAM_BYTES, _COMPILING_BYTES = 3 * 2**27, 2**29
_PLENTY_BYTES = 2**31
_PROGRAM_SHARE = 4

# Matrices that are not stored as they are computed are read beside their place, and copied or decoded into it: of so
# many bytes together, or one of them, at a time.
BESIDE_BYTES = 64 * 2**20

# Small matrices: more in one stack saves nothing, and each finished stack is progress that is kept.
_LARGEST_STACK = 32


class Stack(NamedTuple):
    """Matrices of one shape and dtype, measured together."""

    number: int  # in the order of the run
    pairs: tuple[Pair, ...]
    size: int  # length of the stack, >= len(pairs): the rest is padding, so that one program serves a shape
    lanes: int = 1  # equal parts of it that are computed side by side, each by the same program
    work_bytes: int = 0  # estimated memory that one pair takes while it is computed
    draws: int = 0  # random changes of each kind, for the sampled controls

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of each matrix as it is computed: m >= n."""
        return _tall(self.pairs[0])

    @property
    def transposed(self) -> tuple[bool, ...]:
        """For each pair, whether it is stored as the transpose of what is computed."""
        return tuple(pair.shape != self.shape for pair in self.pairs)

    @property
    def label(self) -> str:
        """Name of the stack in the run directory."""
        return f"{self.number:04d}-{self.shape[0]}x{self.shape[1]}"

    @property
    def bytes_stored(self) -> int:
        """Bytes to read for the stack, base and post."""
        return sum(pair.bytes_base + pair.bytes_post for pair in self.pairs)

    @property
    def bytes_read(self) -> int:
        """Memory that the stack is read into, its padding included, and what is read beside it."""
        return self.size * _stored_bytes(self.pairs[0]) + max(map(_beside_bytes, self.pairs))

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal."""
        return len(self.pairs) * pair_operations(*self.shape, draws=self.draws)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stacks of a comparison, in the order in which they run, and what is left out."""

    stacks: tuple[Stack, ...]
    names: tuple[str, ...]  # of the matrices, in model order
    skipped: tuple[Skipped, ...]
    memory_bytes: int  # that the stacks in flight may take

    @property
    def matrices(self) -> int:
        """Number of matrices to compare."""
        return len(self.names)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of base and post that will be read."""
        return sum(stack.bytes_stored for stack in self.stacks)

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal: see `pair_operations`."""
        return sum(stack.operations for stack in self.stacks)

    @property
    def compiles_ahead(self) -> bool:
        """Whether there is memory to compile the next program while a stack is computed."""
        return self.memory_bytes >= _PLENTY_BYTES

    @property
    def peak_memory(self) -> int:
        """Estimated peak bytes on one CPU host, over those of an idle process.

        The stack at work, the next one being read, the work arrays, the programs.
        """
        following = (*(stack.bytes_read for stack in self.stacks[1:]), 0)
        peaks = (
            stack.bytes_read + ahead + stack.lanes * stack.work_bytes
            for stack, ahead in zip(self.stacks, following, strict=False)
        )
        return _program_bytes(self.memory_bytes) + max(peaks, default=0)

    @property
    def warning(self) -> str:
        """One line on matrices that by themselves need more memory than is given; empty if there are none."""
        needs = [
            (_stored_bytes(pair) + _beside_bytes(pair) + stack.work_bytes, pair)
            for stack in self.stacks
            for pair in stack.pairs
        ]
        available = self.memory_bytes - _program_bytes(self.memory_bytes)
        large = [(need, pair) for need, pair in needs if need > available]
        if not large:
            return ""
        most, pair = max(large, key=lambda found: found[0])
        most += _program_bytes(self.memory_bytes)
        return (
            f"{len(large)} of {len(needs)} matrices need more than the {self.memory_bytes / 2**30:.3g} GiB of "
            f"memory_gib and are taken one at a time: about {most / 2**30:.3g} GiB for {pair.name} "
            f"({pair.shape[0]} x {pair.shape[1]})."
        )


def plan_comparison(
    base: Checkpoint,
    post: Checkpoint,
    selection: Selection,
    *,
    memory_bytes: int,
    dtype: str = "float64",
    method: str = "auto",
    devices: int = 1,
    lanes: int = 1,
    role_map: RoleMap | None = None,
    common_rows: bool = False,
    draws: int = 0,
) -> Plan:
    """Plans a comparison without reading any tensor.

    Args:
        base: The checkpoint before training.
        post: The checkpoint after it.
        selection: Which matrices to keep.
        memory_bytes: What the stacks in flight may take; a single larger matrix is still planned, alone.
        dtype: Working precision.
        method: How matrices are decomposed, one of `polarax.kernels.SVD_METHODS`.
        devices: Devices that a stack is divided over: its length is a multiple of their number.
        lanes: Parts of a stack to compute side by side on one device, where memory allows.
        role_map: The user's own table of names.
        common_rows: Compare embeddings of different vocabularies on the rows that both have.
        draws: Random changes of each kind, for the sampled controls.

    Raises:
        CheckpointError: The checkpoints have no name in common.
        UsageError: The selection leaves nothing.
    """
    pairs, skipped = pair_checkpoints(base, post, role_map=role_map, common_rows=common_rows)
    chosen, left_out = selection.split(pairs)
    work_of = functools.partial(_work_bytes, dtype, method, draws)
    stacks = (stack._replace(draws=draws) for stack in _stack(chosen, memory_bytes, work_of, devices, lanes))
    names = tuple(pair.name for pair in chosen)
    return Plan(tuple(stacks), names, (*skipped, *left_out), memory_bytes)


def pair_operations(rows: int, cols: int, *, draws: int = 0) -> float:
    """Nominal floating-point operations of one pair: two thin SVDs with vectors and one without.

    With draws, one SVD with vectors and the products of a pair for each of their three kinds besides.

    6 m n^2 + 20 n^3 with vectors and 2 m n^2 + 2 n^3 without (R-SVD; Golub and Van Loan, Matrix Computations, 4th
    edition, section 8.6), and five products. A common yardstick for rates, not what a given algorithm spends.
    """
    m, n = max(rows, cols), min(rows, cols)
    with_vectors, values_alone = 6 * m * n**2 + 20 * n**3, 2 * m * n**2 + 2 * n**3
    products = 2 * m * n**2 * 2 + 2 * n**3 * 3
    return float(2 * with_vectors + values_alone + products + len(RANDOM_CHANGES) * draws * (with_vectors + products))


def _stack(
    pairs: Sequence[Pair], memory_bytes: int, work_of: Callable[[Pair], int], devices: int, most_lanes: int
) -> Iterator[Stack]:
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((_tall(pair), pair.dtype_base, pair.dtype_post), []).append(pair)
    number, working_before = 0, 0
    for members in groups.values():
        work_bytes, beside = work_of(members[0]), max(map(_beside_bytes, members))
        in_flight = 2 * _stored_bytes(members[0])  # of the stack at work, and of the next one
        available = memory_bytes - _program_bytes(memory_bytes) - 2 * beside
        lanes = max(1, min(most_lanes, len(members), available // (work_bytes + in_flight)))
        working = max(devices, lanes) * work_bytes
        # The first stack of a shape is read while the last one of the shape before it is still at work.
        fits = max(1, min(_LARGEST_STACK, (available - max(working, working_before)) // in_flight))
        lanes = min(lanes, fits)
        working_before = working
        multiple = math.lcm(devices, lanes)
        fits = max(multiple, fits - fits % multiple)
        length = math.ceil(len(members) / math.ceil(len(members) / fits))
        size = math.ceil(length / multiple) * multiple
        for start in range(0, len(members), size):
            yield Stack(number, tuple(members[start : start + size]), size, lanes, work_bytes)
            number += 1


def _work_bytes(dtype: str, method: str, draws: int, pair: Pair) -> int:
    m, n = _tall(pair)
    drawn = 8 * n * (_DRAWN_ARRAYS * m + _DRAWN_SQUARE_ARRAYS * n) if draws else 0
    if method in ("auto", "gram"):
        return 8 * n * (_SQUARE_ARRAYS * n + _BLOCK_ARRAYS * min(m, max(n, _BLOCK_ROWS))) + _stored_bytes(pair) + drawn
    return _WHOLE_ARRAYS * np.dtype(dtype).itemsize * m * n + drawn


def _program_bytes(memory_bytes: int) -> int:
    wanted = _PROGRAM_BYTES + (_COMPILING_BYTES if memory_bytes >= _PLENTY_BYTES else 0)
    return min(wanted, memory_bytes // _PROGRAM_SHARE)


def _beside_bytes(pair: Pair) -> int:
    """Memory beside a stack that reading this pair's matrices into it takes."""
    sides = ((pair.base, pair.dtype_base, pair.bytes_base), (pair.post, pair.dtype_post, pair.bytes_post))
    elements = math.prod(pair.shape)
    stored = max(nbytes if nbytes != elements * dtype.itemsize else 0 for _, dtype, nbytes in sides)
    one = 0
    if pair.shape != _tall(pair) or not (pair.base.is_plain and pair.post.is_plain):
        # What is read of the tensor; several matrices may be cut from it.
        one = max(math.prod(view.factors or pair.shape) * dtype.itemsize for view, dtype, _ in sides)
    return sum(max(nbytes, min(BESIDE_BYTES, _LARGEST_STACK * nbytes)) for nbytes in (one, stored))


def _tall(pair: Pair) -> tuple[int, int]:
    return max(pair.shape), min(pair.shape)


def _stored_bytes(pair: Pair) -> int:
    """Bytes of a pair as it is read; in the store it may take fewer."""
    return math.prod(pair.shape) * (pair.dtype_base.itemsize + pair.dtype_post.itemsize)
