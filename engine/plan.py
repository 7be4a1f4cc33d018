"""What a comparison will do, from the headers alone: stacks, bytes, operations, memory.

A stack is a number of matrices of one shape and dtype that run through one compiled program. Wide matrices are read as
their transposes, whose laws are the same with left and right exchanged: up and down projections share a program.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from polarax.loaders import Checkpoint, Pair, RoleMap, Skipped, pair_checkpoints
from polarax.selection import Selection

# Work arrays of one pair in the working dtype while it is measured: base, post, change, two left factors, their
# copies in LAPACK's layout and its workspace. Measured as peak memory of 8960 x 1536 pairs over one matrix's size.
_WORK_ARRAYS = 12

# Small matrices: more in one stack saves nothing, and each finished stack is progress that is kept.
_LARGEST_STACK = 32


class Stack(NamedTuple):
    """Matrices of one shape and dtype, measured together."""

    number: int  # in the order of the run
    pairs: tuple[Pair, ...]
    size: int  # length of the stack, >= len(pairs): the rest is padding, so that one program serves a shape
    lanes: int = 1  # equal parts of it that are computed side by side, each by the same program

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
        return len(self.pairs) * _stored_bytes(self.pairs[0])

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal."""
        return len(self.pairs) * pair_operations(*self.shape)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stacks of a comparison, in the order in which they run, and what is left out."""

    stacks: tuple[Stack, ...]
    names: tuple[str, ...]  # of the matrices, in model order
    skipped: tuple[Skipped, ...]
    working_bytes: int  # bytes of one number in the working dtype

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
    def peak_memory(self) -> int:
        """Estimated peak bytes on one CPU host: the stack at work, the next one being read, and the work arrays."""
        peaks = []
        for position, stack in enumerate(self.stacks):
            following = self.stacks[position + 1].bytes_stored if position + 1 < len(self.stacks) else 0
            working = stack.lanes * _WORK_ARRAYS * self.working_bytes * math.prod(stack.shape)
            peaks.append(2 * stack.bytes_stored + following + working)
        return max(peaks, default=0)


def plan_comparison(
    base: Checkpoint,
    post: Checkpoint,
    selection: Selection,
    *,
    memory_bytes: int,
    working_bytes: int,
    devices: int = 1,
    lanes: int = 1,
    role_map: RoleMap | None = None,
    common_rows: bool = False,
) -> Plan:
    """Plans a comparison without reading any tensor.

    Args:
        base: The checkpoint before training.
        post: The checkpoint after it.
        selection: Which matrices to keep.
        memory_bytes: What the stacks in flight may take; a single larger matrix is still planned, alone.
        working_bytes: Bytes of one number in the working dtype.
        devices: Devices that a stack is divided over: its length is a multiple of their number.
        lanes: Parts of a stack to compute side by side on one device, where memory allows.
        role_map: The user's own table of names.
        common_rows: Compare embeddings of different vocabularies on the rows that both have.

    Raises:
        CheckpointError: The checkpoints have no name in common.
        UsageError: The selection leaves nothing.
    """
    pairs, skipped = pair_checkpoints(base, post, role_map=role_map, common_rows=common_rows)
    chosen, left_out = selection.split(pairs)
    stacks = _stack(chosen, memory_bytes, working_bytes, devices, lanes)
    names = tuple(pair.name for pair in chosen)
    return Plan(tuple(stacks), names, (*skipped, *left_out), working_bytes)


def pair_operations(rows: int, cols: int) -> float:
    """Nominal floating-point operations of one pair: two thin SVDs with vectors and one without.

    6 m n^2 + 20 n^3 with vectors and 2 m n^2 + 2 n^3 without (R-SVD; Golub and Van Loan, Matrix Computations, 4th
    edition, section 8.6), and five products. A common yardstick for rates, not what a given algorithm spends.
    """
    m, n = max(rows, cols), min(rows, cols)
    with_vectors, values_alone = 6 * m * n**2 + 20 * n**3, 2 * m * n**2 + 2 * n**3
    products = 2 * m * n**2 * 2 + 2 * n**3 * 3
    return float(2 * with_vectors + values_alone + products)


def _stack(
    pairs: Sequence[Pair], memory_bytes: int, working_bytes: int, devices: int, most_lanes: int
) -> Iterator[Stack]:
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((_tall(pair), pair.dtype_base, pair.dtype_post), []).append(pair)
    number, working_before = 0, 0
    for (shape, *_), members in groups.items():
        working_one = _WORK_ARRAYS * working_bytes * math.prod(shape)
        in_flight = 3 * _stored_bytes(members[0])  # on the host, on the device, and the next stack being read
        lanes = max(1, min(most_lanes, len(members), memory_bytes // (working_one + in_flight)))
        working = max(devices, lanes) * working_one
        # The first stack of a shape is read while the last one of the shape before it is still at work.
        fits = max(1, min(_LARGEST_STACK, (memory_bytes - max(working, working_before)) // in_flight))
        lanes = min(lanes, fits)
        working_before = working
        multiple = math.lcm(devices, lanes)
        fits = max(multiple, fits - fits % multiple)
        length = math.ceil(len(members) / math.ceil(len(members) / fits))
        size = math.ceil(length / multiple) * multiple
        for start in range(0, len(members), size):
            yield Stack(number, tuple(members[start : start + size]), size, lanes)
            number += 1


def _tall(pair: Pair) -> tuple[int, int]:
    return max(pair.shape), min(pair.shape)


def _stored_bytes(pair: Pair) -> int:
    return math.prod(pair.shape) * (pair.dtype_base.itemsize + pair.dtype_post.itemsize)
