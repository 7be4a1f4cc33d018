"""Dividing the stacks of a plan over hosts by their operations: the largest that is left goes to the host with least.

Longest processing time first: never more than 4/3 of the best possible largest share (R. L. Graham, Bounds on
Multiprocessing Timing Anomalies, SIAM Journal on Applied Mathematics 17, 1969). It depends on nothing but the stacks
and the number of hosts, so that hosts which plan alike divide alike without a word between them.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from polarax.planning.stacks import Stack


class Share(NamedTuple):
    """The stacks of one host, in the order in which they run."""

    stacks: tuple[Stack, ...]

    @property
    def matrices(self) -> int:
        """Number of matrices."""
        return sum(len(stack.pairs) for stack in self.stacks)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of base and post."""
        return sum(stack.bytes_stored for stack in self.stacks)

    @property
    def operations(self) -> float:
        """Floating-point operations, nominal."""
        return sum(stack.operations for stack in self.stacks)


def divide_stacks(stacks: Sequence[Stack], hosts: int) -> tuple[Share, ...]:
    """Divides stacks over hosts; a stack is never split, so some hosts may have none.

    Args:
        stacks: In the order in which they run.
        hosts: Their number, at least 1.

    Returns:
        A `Share` for each host; together they hold every stack once.

    Raises:
        ValueError: There are no hosts.
    """
    if hosts < 1:
        raise ValueError(f"hosts must be at least 1. Got {hosts}.")
    loads = [(0.0, host) for host in range(hosts)]  # a heap already
    owned: list[list[int]] = [[] for _ in range(hosts)]
    operations = [stack.operations for stack in stacks]
    for place in sorted(range(len(stacks)), key=lambda place: -operations[place]):  # stable: ties in the order of runs
        load, host = loads[0]
        owned[host].append(place)
        heapq.heapreplace(loads, (load + operations[place], host))
    return tuple(Share(tuple(stacks[place] for place in sorted(places))) for places in owned)


def balance(shares: Sequence[Share]) -> float:
    """The largest share's operations over the mean: 1 is perfect, and as many as there are hosts is the worst."""
    operations = [share.operations for share in shares]
    total = sum(operations)
    return max(operations) * len(operations) / total if total else 1.0
