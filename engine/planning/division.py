"""Dividing the stacks of a plan over hosts: cut into pieces, of which the longest that is left goes to the least busy.

Longest processing time first: never more than 4/3 of the best possible largest share (R. L. Graham, Bounds on
Multiprocessing Timing Anomalies, SIAM Journal on Applied Mathematics 17, 1969), and next to it where no piece is large.
It depends on nothing but the stacks and the number of hosts, so that hosts which plan alike divide alike without a word
between them.
"""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from polarax.planning.rates import TYPICAL
from polarax.planning.stacks import Stack

# Pieces of a host's share: so many that the last one to end is a small part of the time, and so that a host which is
# done has something to take over from one that is slow.
_PIECES_OF_A_SHARE = 32


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

    @property
    def cost(self) -> float:
        """Expected time, in no unit."""
        return sum(map(cost, self.stacks))


def cost(stack: Stack) -> float:
    """Expected computing time of a stack, its padding included, in a unit that is the same for all."""
    return TYPICAL.seconds([stack])


def pieces(stacks: Sequence[Stack], hosts: int) -> list[Stack]:
    """Cuts stacks into what hosts take and hand over whole; for one host, the stacks as they are.

    Each is of neighbours, and all of a shape have one size, so that they share a program. A piece costs about 1/32 of a
    host's share of everything at most, but fills the devices or lanes of a host, whatever that costs; lanes only as far
    as there is enough for all hosts.

    Args:
        stacks: In the order in which they run.
        hosts: Their number, at least 1.

    Returns:
        The pieces, in the order of the stacks.

    Raises:
        ValueError: There are no hosts.
    """
    _check(hosts)
    if hosts == 1:
        return list(stacks)
    share = sum(map(cost, stacks)) / hosts
    return [piece for stack in stacks for piece in _cut(stack, share)]


def _cut(stack: Stack, share: float) -> list[Stack]:
    size = _piece_size(stack, share / TYPICAL.seconds_of_a_matrix(stack))
    if size >= len(stack.pairs):
        return [stack if size >= stack.size else stack.piece(0, len(stack.pairs), size=size)]
    starts = range(0, len(stack.pairs), size)
    return [stack.piece(start, min(size, len(stack.pairs) - start), size=size) for start in starts]


def _piece_size(stack: Stack, fair: float) -> int:
    """Length of the pieces of a stack of whose matrices a host's share is worth `fair`."""
    unit = math.lcm(stack.devices, stack.lanes)
    units = int(fair / _PIECES_OF_A_SHARE / unit)
    if units:
        # Of what is no more than that, what leaves the least padding.
        whole = math.ceil(stack.size / unit)
        units = min(units, whole)
        return unit * min(range(units, units // 2, -1), key=lambda length: math.ceil(whole / length) * length)
    if stack.lanes == 1:
        return unit
    # One matrix at a time has all the cores, which it makes less use of than several side by side.
    rounds = max(1, int(fair / unit))
    return max(1, min(unit, round(fair / rounds)))


def divide_stacks(stacks: Sequence[Stack], hosts: int) -> tuple[Share, ...]:
    """Divides stacks, or the `pieces` of them, over hosts; none is split, so some hosts may have none.

    Args:
        stacks: In the order in which they run.
        hosts: Their number, at least 1.

    Returns:
        A `Share` for each host; together they hold every stack once.

    Raises:
        ValueError: There are no hosts.
    """
    _check(hosts)
    owned: list[list[int]] = [[] for _ in range(hosts)]
    for place, host in _longest_first([cost(stack) for stack in stacks], hosts):
        owned[host].append(place)
    return tuple(Share(tuple(stacks[place] for place in sorted(places))) for places in owned)


def _longest_first(costs, hosts):
    """(place, host) of every cost."""
    loads = [(0.0, host) for host in range(hosts)]  # a heap already
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):  # stable: ties in the order of runs
        load, host = loads[0]
        yield place, host
        heapq.heapreplace(loads, (load + costs[place], host))


def _check(hosts):
    if hosts < 1:
        raise ValueError(f"hosts must be at least 1. Got {hosts}.")


def balance(shares: Sequence[Share]) -> float:
    """The largest share's expected time over the mean: 1 is perfect, as many as there are hosts is the worst."""
    costs = [share.cost for share in shares]
    total = sum(costs)
    return max(costs) * len(costs) / total if total else 1.0
