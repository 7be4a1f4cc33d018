"""What a comparison will do, from the headers alone: stacks, bytes, operations, memory."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from polarax.errors import UsageError
from polarax.loaders import Checkpoint, CheckpointError, Coverage, Pair, Pairing, RoleMap, Skipped, short_name
from polarax.loaders.pairing import natural
from polarax.planning.device_memory import DeviceMemory, divided_by_rows, lines_on_rows
from polarax.planning.first_look_costs import block_columns
from polarax.planning.measurement import Measurement
from polarax.planning.partners import after_selection, refusal
from polarax.planning.selection import Selection
from polarax.planning.stacks import (
    PLENTY_BYTES,
    Stack,
    beside_bytes,
    make_stacks,
    program_bytes,
    stored_bytes,
    work_bytes,
)


class Part(NamedTuple):
    """What is compared, and what is not, of one post."""

    names: tuple[str, ...]  # of the matrices, in model order
    skipped: tuple[Skipped, ...]
    coverage: Coverage


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stacks of a comparison, in the order in which they run, and what is left out."""

    stacks: tuple[Stack, ...]
    parts: tuple[Part, ...]  # of each post
    memory_bytes: int  # that the stacks in flight may take
    rows_divided: tuple[str, ...] = ()  # a line for each kind of matrices that a device has no room for

    @property
    def names(self) -> tuple[str, ...]:
        """Of the matrices that a post has, in model order."""
        return self.parts[0].names if len(self.parts) == 1 else _in_order([part.names for part in self.parts])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What a post lacks or cannot be compared in."""
        if len(self.parts) == 1:
            return self.parts[0].skipped
        return tuple(dict.fromkeys(row for part in self.parts for row in part.skipped))

    @property
    def matrices(self) -> int:
        """Number of matrices to compare."""
        return len(self.names)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of base and posts that will be read."""
        return sum(stack.bytes_stored for stack in self.stacks)

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal: see `pair_operations`."""
        return sum(stack.operations for stack in self.stacks)

    @property
    def compiles_ahead(self) -> bool:
        """Whether there is memory to compile the next program while a stack is computed."""
        return self.memory_bytes >= PLENTY_BYTES

    @functools.cached_property
    def peak_memory(self) -> int:
        """Estimated peak bytes on one CPU host, over those of an idle process.

        The stack at work, the next one being read, the work arrays, the programs.
        """
        read = [stack.bytes_read for stack in self.stacks]
        peaks = (
            this + following + stack.lanes * stack.work_bytes
            for stack, this, following in zip(self.stacks, read, [*read[1:], 0], strict=False)
        )
        return program_bytes(self.memory_bytes) + max(peaks, default=0)

    @functools.cached_property
    def warning(self) -> str:
        """One line on matrices that by themselves need more memory than is given; empty if there are none."""
        return memory_warning(self.stacks, self.memory_bytes)


def memory_warning(stacks: Sequence[Stack], memory_bytes: int) -> str:
    """One line on matrices of stacks that by themselves need more memory than is given; empty if there are none."""
    available = memory_bytes - program_bytes(memory_bytes)
    large = []
    for stack in stacks:
        one = stored_bytes(stack.members[0]) + stack.work_bytes
        if one + stack.beside_bytes <= available:
            continue
        needs = [(one + beside_bytes(member), member[0]) for member in stack.members]
        large += [(need, pair) for need, pair in needs if need > available]
    if not large:
        return ""
    most, pair = max(large, key=lambda found: found[0])
    most += program_bytes(memory_bytes)
    return (
        f"{len(large)} of {sum(len(stack.pairs) for stack in stacks)} matrices need more than the "
        f"{memory_bytes / 2**30:.3g} GiB of memory_gib and are taken one at a time: about {most / 2**30:.3g} GiB for "
        f"{short_name(pair.name)} ({pair.shape[0]} x {pair.shape[1]})."
    )


def plan_posts(
    base: Checkpoint,
    posts: Mapping[str, Checkpoint],
    selection: Selection,
    measurement: Measurement = Measurement(),
    *,
    memory_bytes: int,
    devices: int = 1,
    device_bytes: int | None = None,
    lanes: int = 1,
    role_map: RoleMap | None = None,
    common_rows: bool = False,
    between: bool = False,
    allow_partial: bool = False,
    unusable: dict[str, str] | None = None,
    refused: list[Exception] | None = None,
) -> Plan:
    """Plans the comparison of posts with one base, which is read and decomposed once for all that fit.

    Args:
        base: The checkpoint before training.
        posts: The checkpoints after it, by label; one alone needs none.
        selection: Which matrices to keep.
        measurement: What is measured of them.
        memory_bytes: What the stacks in flight may take; a single larger matrix is still planned, alone.
        devices: Devices that a stack is divided over: its length is a multiple of their number.
        device_bytes: Memory of one, where it is known: larger matrices are divided over all of them by rows.
        lanes: Parts of a stack to compute side by side on one device, where memory allows.
        role_map: The user's own table of names.
        common_rows: Compare embeddings of different vocabularies on the rows that both have.
        between: Compare the posts with each other too: all of a matrix's are then in one stack, whatever memory that
            takes; otherwise as many as fit.
        allow_partial: Whether it is enough that something of a post and the base is paired.
        unusable: Takes the labels of posts that cannot be compared, with the reason, and they are left out.
        refused: Takes the errors of posts of which too little can be compared, which are planned all the same.

    Raises:
        CheckpointError: A post and the base have nothing in common, or too little.
        UsageError: The selection leaves nothing of a post, or none of its matrices can be compared.
    """
    pairing = Pairing(base, role_map=role_map, common_rows=common_rows)
    parts: list[Part] = []
    members: dict[tuple, dict[int, Pair]] = {}
    for label, post in posts.items():
        try:
            paired = pairing.pair(post)
            problem = refusal(base, post, paired, label=label, allow_partial=allow_partial)
            if problem is not None and refused is None:
                raise problem
            chosen, left_out = _split(selection, paired.pairs, refused_already=problem is not None)
        except (CheckpointError, UsageError) as error:
            if unusable is None:
                raise
            unusable[label] = str(error)
            continue
        for pair in chosen:
            members.setdefault((pair.name, pair.shape), {})[len(parts)] = pair
        if refused is not None and problem is not None:
            refused.append(problem)
        names = tuple(pair.name for pair in chosen)
        coverage = after_selection(paired.coverage, paired.pairs, chosen)
        parts.append(Part(names, (*paired.skipped, *left_out), coverage))
    work_of = functools.partial(work_bytes, measurement, between)
    stacks = make_stacks(members.values(), memory_bytes, work_of, devices, lanes, together=between)
    stacks = (stack._replace(draws=measurement.draws, columns=_columns(stack, measurement)) for stack in stacks)
    memory = DeviceMemory(devices, device_bytes)
    divided = tuple(divided_by_rows(stack, measurement, memory) for stack in stacks)
    return Plan(divided, tuple(parts), memory_bytes, tuple(lines_on_rows(divided, measurement, memory)))


def _columns(stack: Stack, measurement: Measurement) -> int:
    """Those that a first look iterates on; 0 for a full analysis."""
    return block_columns(*stack.shape, measurement.top_k) if measurement.quick else 0


def _split(selection, pairs, *, refused_already):
    """What is selected and what is not; nothing where that is an error but another one comes first."""
    try:
        return selection.split(pairs)
    except UsageError:
        if not refused_already:
            raise
        return [], []


def _in_order(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All names of several lists, each once: in the order of the longest one if that has them all, else in natural."""
    union = {name for names in lists for name in names}
    longest = max(lists, key=len, default=())
    return tuple(longest) if len(longest) == len(union) else tuple(sorted(union, key=natural))
