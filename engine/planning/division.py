"""Dividing the stacks of a plan over hosts: cut into pieces, of which the longest that is left goes to the least busy.

Longest processing time first: never more than 4/3 of the best possible largest share (R. L. Graham, Bounds on
Multiprocessing Timing Anomalies, SIAM Journal on Applied Mathematics 17, 1969), and next to it where no piece is large.
Where that leaves something to gain, pieces are fitted into the least time that first-fit finds room in. The division
depends on nothing but the stacks, the number of hosts and the kind of device, so that hosts which plan alike divide
alike without a word between them.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polarax.planning.rates import Rates, typical_rates
from polarax.planning.stacks import Stack

# Pieces of a host's share: so many that the last one to end is a small part of the time, and so that a host which is
# done has something to take over from one that is slow.
_PIECES_OF_A_SHARE = 32
_ROUNDING = 1e-9

# How often a better division is looked for, and what is good enough, over what no division can be below.
_TRIES, _GOOD = 12, 1.002


class Share(NamedTuple):
    """The stacks of one host, in the order in which they run."""

    stacks: tuple[Stack, ...]
    cost: float = 0.0  # expected seconds, padding included, by the rates that it was divided by

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


def cost(stack: Stack, rates: Rates | None = None) -> float:
    """Expected seconds of a stack, its padding included, by `typical_rates` or by others."""
    return (rates or typical_rates()).seconds([stack])


def pieces(stacks: Sequence[Stack], hosts: int, rates: Rates | None = None) -> list[Stack]:
    """Cuts stacks into what hosts take and hand over whole; for one host, the stacks as they are.

    Each is of neighbours, and all of a shape have one size, so that they share a program. A piece costs about 1/32 of a
    host's share of everything at most, but fills the devices or lanes of a host, whatever that costs; lanes only as far
    as there is enough for all hosts.

    Args:
        stacks: In the order in which they run.
        hosts: Their number, at least 1.
        rates: What a stack costs; `typical_rates` by default.

    Returns:
        The pieces, in the order of the stacks.

    Raises:
        ValueError: There are no hosts.
    """
    _check(hosts)
    if hosts == 1:
        return list(stacks)
    rates = rates or typical_rates()
    share = rates.seconds(stacks) / hosts
    return [piece for stack in stacks for piece in _cut(stack, share / rates.seconds_of_a_matrix(stack))]


def _cut(stack: Stack, fair: float) -> list[Stack]:
    size = _piece_size(stack, fair)
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


def divide_stacks(stacks: Sequence[Stack], hosts: int, rates: Rates | None = None) -> tuple[Share, ...]:
    """Divides stacks, or the `pieces` of them, over hosts; none is split, so some hosts may have none.

    Args:
        stacks: In the order in which they run.
        hosts: Their number, at least 1.
        rates: What a stack costs; `typical_rates` by default.

    Returns:
        A `Share` for each host; together they hold every stack once.

    Raises:
        ValueError: There are no hosts.
    """
    _check(hosts)
    rates = rates or typical_rates()
    costs = [cost(stack, rates) for stack in stacks]
    owners = _divided(costs, hosts)
    return tuple(
        Share(tuple(stacks[place] for place in sorted(places)), sum(costs[place] for place in places))
        for places in owners
    )


def _divided(costs, hosts):
    """The places of each host: longest first, or as they fit into the least that they all fit into, if that is better.

    The latter is MULTIFIT (E. G. Coffman, M. R. Garey and D. S. Johnson, SIAM Journal on Computing 7, 1978): it pays
    where a host has a few large ones, of which longest first gives some hosts one more than need be.
    """
    owned: list[list[int]] = [[] for _ in range(hosts)]
    for place, host in _longest_first(costs, hosts):
        owned[host].append(place)
    low = max(sum(costs) / hosts, max(costs, default=0.0))
    high = max(sum(costs[place] for place in places) for places in owned)
    for _ in range(_TRIES):
        if high <= low * _GOOD:
            break
        middle = (low + high) / 2
        fitted = _fitted(costs, hosts, middle)
        if fitted is None:
            low = middle
        else:
            owned, high = fitted, max(sum(costs[place] for place in places) for places in fitted)
    return owned


def _fitted(costs, hosts, most):
    """The places of each host where none is to have more than `most`: first-fit decreasing; None if it does not fit.

    Host by host, each taking the largest that fits until none does, which comes to the same as place by place.
    """
    alike: dict[float, list[int]] = {}
    for place, one in enumerate(costs):
        alike.setdefault(one, []).append(place)
    kinds = sorted(alike)  # taken from the end; those used up are removed
    waiting = [alike[kind][::-1] for kind in kinds]
    owned: list[list[int]] = []
    for _ in range(hosts):
        places: list[int] = []
        room, kind = most * (1 + _ROUNDING), len(kinds)
        while (kind := bisect.bisect_right(kinds, room, hi=kind) - 1) >= 0:
            while waiting[kind] and kinds[kind] <= room:
                places.append(waiting[kind].pop())
                room -= kinds[kind]
            if not waiting[kind]:
                del kinds[kind], waiting[kind]
        owned.append(places)
    return None if kinds else owned


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


class Limits(NamedTuple):
    """What no division of a plan over hosts can be better than, since no matrix is split."""

    balance: float  # least that `balance` can be
    largest: float  # what the most expensive matrix takes, over a host's mean share
    hosts: int  # beyond so many, more gain nothing: the largest matrix alone takes as long as the whole


def limits(stacks: Sequence[Stack], hosts: int, rates: Rates | None = None) -> Limits:
    """The limits of dividing stacks over hosts.

    Of the (k - 1) hosts + 1 most expensive matrices some host has k, which cost as much as the k cheapest of them at
    least (S. Martello and P. Toth, Knapsack Problems, 1990, chapter 8, for bins).

    Args:
        stacks: As planned, or pieces of them.
        hosts: Their number, at least 1.
        rates: What a stack costs; `typical_rates` by default.

    Raises:
        ValueError: There are no hosts.
    """
    _check(hosts)
    rates = rates or typical_rates()
    # The smallest pieces that there could be: one matrix, or one for each device, which take as long together.
    costs = [
        np.full(math.ceil(len(stack.pairs) / stack.devices), stack.devices * rates.seconds_of_a_matrix(stack))
        for stack in stacks
    ]
    if not costs:
        return Limits(1.0, 0.0, 1)
    falling = np.sort(np.concatenate(costs))[::-1]
    before = np.concatenate([[0.0], np.cumsum(falling)])
    of_one = np.arange(1, math.ceil(falling.size / hosts) + 1)
    counted = (of_one - 1) * hosts + 1
    bound = np.max(before[counted] - before[counted - of_one])
    mean = before[-1] / hosts
    return Limits(max(1.0, float(bound / mean)), float(falling[0] / mean), _hosts_of_use(falling.tolist()))


def _hosts_of_use(falling):
    """The smallest number of hosts of which none has more than the most expensive matrix alone."""
    largest = falling[0] * (1 + _ROUNDING)
    low, high = max(1, math.floor(sum(falling) / largest)), len(falling)
    while low < high:
        hosts = (low + high) // 2
        loads = [0.0] * hosts
        for place, host in _longest_first(falling, hosts):
            loads[host] += falling[place]
        low, high = (low, hosts) if max(loads) <= largest else (hosts + 1, high)
    return low
