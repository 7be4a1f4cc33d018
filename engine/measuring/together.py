"""A comparison whose stacks are divided into pieces, by several processes or from where several left off.

Every process reads and measures the pieces that it takes and puts what it found into the folder of the run, a file for
each. When all are there process 0 joins them: what it writes is what one process writes.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from polarax.errors import RunError
from polarax.hosts import Hosts, Taking
from polarax.measuring.execution import Work, run_stacks
from polarax.measuring.outputs import Output, Readers, Written
from polarax.measuring.parts import StackReadings
from polarax.measuring.progress import Progress, SharedProgress
from polarax.measuring.stack_reads import Operands
from polarax.planning.division import divide_stacks, pieces
from polarax.planning.rates import typical_rates
from polarax.planning.stacks import Stack
from polarax.results.files import cell
from polarax.results.parts import Found, Parts
from polarax.results.remote.staging import settle


def measure_together(
    work: Work,
    readers: Mapping[str, Readers],
    parts: Parts,
    missing: Sequence[Stack],
    hosts: Hosts | None,
    progress: Progress | None,
) -> dict[str, float]:
    """Measures what this process takes of what is missing, until all of it is there.

    Args:
        work: What is to be computed.
        readers: Of each run, by its folder.
        parts: Takes what is found.
        missing: Of the plan's stacks, as all processes know it.
        hosts: The processes; None for one that is alone.
        progress: Of one that is alone; otherwise all show theirs together.

    Returns:
        The seconds that this process spent on reading (waiting), compiling and computing.

    Raises:
        RunError: A checkpoint can no longer be read, what was found cannot be written, or another process is gone.
    """
    if hosts is None:
        assert progress is not None
        return run_stacks(work, missing, [_PartWriter(readers, parts, None, {})], progress)
    cut, taking, place = shared_out(missing, hosts)
    writer = _PartWriter(readers, parts, taking, place)
    with SharedProgress(hosts, cut) as shown:
        seconds = run_stacks(work, noted(taking, cut, hosts), [writer], shown, taking.finished)
    hosts.complete = True
    hosts.note(doing="waiting for the end")
    return seconds


def noted(taking: Taking, cut: Sequence[Stack], hosts: Hosts) -> Iterator[Stack]:
    """The pieces that this process takes; the others hear which one it is at."""
    for number in taking:
        hosts.note(doing=f"{cut[number].label} from matrix {cut[number].start + 1} on")
        yield cut[number]


def shared_out(
    stacks: Sequence[Stack], hosts: Hosts, *, again: bool = True
) -> tuple[list[Stack], Taking, dict[tuple[int, int], int]]:
    """Pieces of stacks, which of them this process takes, and the number of each by its stack's and its start."""
    cut, rates = pieces(stacks, hosts.processes), typical_rates()
    costs = [rates.seconds([piece]) for piece in cut]
    place = {(piece.number, piece.start): number for number, piece in enumerate(cut)}
    shares = []
    for share in divide_stacks(cut, hosts.processes):
        mine = [place[piece.number, piece.start] for piece in share.stacks]
        shares.append(sorted(mine, key=lambda number: -costs[number]))
    return cut, Taking(hosts, costs, shares, again=again), place


def missing_stacks(stacks: Iterable[Stack], outputs: Mapping[str, Output], parts: Parts) -> Iterator[Stack]:
    """What of the stacks is neither in a run nor among the parts: neighbours together."""
    for stack in stacks:
        waiting = {run: output for run, output in outputs.items() if output.waits_for(stack)}
        lacks = np.zeros(len(stack.pairs), bool)
        for run, output in waiting.items():
            part = output.readers.part_of(stack)
            assert part is not None
            lacks |= [not parts.has(run, pair.name) for pair in part.pairs]
        for lacking, group in itertools.groupby(range(len(stack.pairs)), key=lacks.__getitem__):
            places = list(group)
            if lacking:
                yield stack.part(places[0], len(places))


def join_parts(stacks: Iterable[Stack], outputs: Mapping[str, Output], parts: Parts) -> None:
    """Writes what was found into the runs, stack by stack; those in a bucket are there when this returns.

    Raises:
        RunError: Something cannot be read or written.
    """
    parts.look()
    for stack in stacks:
        for run, output in outputs.items():
            if not output.waits_for(stack):
                continue
            part = output.readers.part_of(stack)
            assert part is not None
            names = [pair.name for pair in part.pairs]
            lost = [name for name in names if not parts.has(run, name)]
            if lost:
                raise RunError(f"Of {len(lost)} matrices nothing was found, {lost[0]} first. The same command goes on.")
            found = parts.of(run, names)
            output.write_stack(stack, Written(list(found.rows), found.arrays))
    for output in outputs.values():
        settle(output.writer.path)


class _PartWriter:
    """Puts what all runs say of a piece into one file."""

    def __init__(
        self,
        readers: Mapping[str, Readers],
        parts: Parts,
        taking: Taking | None,
        place: Mapping[tuple[int, int], int],
    ):
        self._readers, self._parts, self._taking, self._place = readers, parts, taking, place
        self.posts = max((reader.posts for reader in readers.values()), key=len)

    def waits_for(self, stack: Stack) -> bool:
        return True

    def write(self, stack: Stack, readings: StackReadings, operands: Operands) -> None:
        found = {}
        for run, reader in self._readers.items():
            if reader.part_of(stack) is not None:
                rows, arrays = reader.read(stack, readings, operands)
                texts = [{column: cell(value) for column, value in row.items()} for row in rows]
                found[run] = Found(texts, dict(arrays))
        self._parts.put(stack, found)
        if self._taking is not None:
            self._taking.done(self._place[stack.number, stack.start])
