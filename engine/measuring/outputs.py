"""What the runs say of a stack: its readings as rows and arrays, and the writers that take them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from polarax.loaders import Pair, Skipped
from polarax.measuring.parts import StackReadings
from polarax.measuring.relations import relation_of
from polarax.measuring.rows import as_stored, make_row
from polarax.measuring.stack_reads import Operands
from polarax.planning.comparison_plan import Part, Plan
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Stack
from polarax.results.run_directory import RunWriter


class Written(NamedTuple):
    """What one run keeps of a stack."""

    rows: Sequence[Mapping[str, object]]  # column -> value, for each matrix
    arrays: Mapping[str, np.ndarray]  # name -> (matrices, ...)


class Writer(Protocol):
    """What takes the readings of stacks."""

    @property
    def posts(self) -> tuple[int, ...]:
        """Places of what is compared: two where posts are compared with each other."""

    def waits_for(self, stack: Stack) -> bool:
        """Whether the stack has something that is not written yet."""

    def write(self, stack: Stack, readings: StackReadings, operands: Operands) -> None:
        """Writes what of a stack belongs here; the operands are those that the readings are of."""


class Readers:
    """What a run says of a stack: a run of the base and a post, or of two posts.

    Args:
        posts: One place, or two of which the first stands as the base.
        part: What is compared, and what is not.
        measurement: What its rows have.
    """

    def __init__(self, posts: tuple[int, ...], part: Part, measurement: Measurement):
        self.posts, self.part, self._measurement = posts, part, measurement

    def part_of(self, stack: Stack) -> Stack | None:
        """What of a stack belongs to this run."""
        if not set(self.posts) <= set(stack.posts):
            return None
        return stack.of_post(*self.posts) if len(self.posts) == 1 else stack.between(*self.posts)

    def read(self, stack: Stack, readings: StackReadings, operands: Operands) -> Written:
        """The rows and arrays of a stack that has a part of this run; the operands are those of the readings."""
        part, places = self.part_of(stack), tuple(stack.posts.index(place) for place in self.posts)
        assert part is not None
        alone = len(places) == 1
        mine = readings.posts[places[0]] if alone else readings.pairs[pairs_of(stack).index(places)]
        mine = as_stored(mine, part)
        rows = [make_row(pair, mine, index, self._measurement) for index, pair in enumerate(part.pairs)]
        base, post = (operands[0], *(operands[1 + place] for place in places))[-2:]
        for index, row in enumerate(rows):
            matrices = (x[index].T if part.transposed[index] else x[index] for x in (base, post))
            spectra = (mine[name][index] for name in ("s_base", "s_post") if name in mine)
            row["relation"] = relation_of(row, *spectra, *matrices).value if "s_base" in mine else ""
        return Written(rows, {name: values for name, values in mine.items() if values.ndim > 1})


class Output:
    """A run that is written.

    Args:
        writer: Its writer.
        readers: What it says of each stack.
        plan: Of all runs.
    """

    def __init__(self, writer: RunWriter, readers: Readers, plan: Plan):
        self.writer, self.readers = writer, readers
        self._place = {name: index for index, name in enumerate(readers.part.names)}
        self._parts = [part for part in map(readers.part_of, plan.stacks) if part is not None]
        self._waiting = {part.label: part for part in writer.unfinished(self._parts, self._place)}

    @property
    def posts(self) -> tuple[int, ...]:
        """Places of what is compared."""
        return self.readers.posts

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not compared."""
        return self.readers.part.skipped

    def waits_for(self, stack: Stack) -> bool:
        """Whether the stack has something that is not written yet."""
        return stack.label in self._waiting

    @property
    def pairs(self) -> list[Pair]:
        """All its matrices."""
        return [pair for part in self._parts for pair in part.pairs]

    def write(self, stack: Stack, readings: StackReadings, operands: Operands) -> None:
        """Writes what of a stack belongs to this run; the operands are those that the readings are of."""
        self.write_stack(stack, self.readers.read(stack, readings, operands))

    def write_stack(self, stack: Stack, written: Written) -> None:
        """Writes a stack that was read elsewhere."""
        part = self._waiting[stack.label]
        self.writer.write_stack(part, *written, [self._place[pair.name] for pair in part.pairs])


def pairs_of(stack: Stack) -> tuple[tuple[int, int], ...]:
    """Places within the stack of all posts that are compared with each other."""
    return tuple(itertools.combinations(range(len(stack.posts)), 2))
