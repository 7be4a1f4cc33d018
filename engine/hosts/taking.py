"""Which process does what: each its own share first, then what others have left, then what a slow one does not finish.

Whoever puts its number under a piece's key first has taken it. A host that is ten times slower than the others so costs
them no more than the pieces that it is at, which are done again by those who have nothing else to do.
"""

import threading
import time
from collections.abc import Iterator, Sequence

from polarax.hosts.coordination import Hosts

_LOOK_SECONDS = 0.2
# A piece that another process has taken is done again when it takes so many times what it would take here.
_LATE = 2.0
_LATE_SECONDS = 2.0


class Taking:
    """The pieces that this process takes, one after another, for as long as any is not done; an iterable of numbers.

    Args:
        hosts: All processes, which divide the same pieces.
        costs: Of each piece, in any unit.
        shares: For each process the pieces to begin with.
        again: Whether a piece may be done again by another process than the one that is late with it: its result must
            do no harm when it comes at last.
    """

    def __init__(self, hosts: Hosts, costs: Sequence[float], shares: Sequence[Sequence[int]], *, again: bool = True):
        self._hosts, self._costs, self._shares, self._again = hosts, costs, shares, again
        self.finished = threading.Event()  # all pieces are done, by whomever
        self._mine: set[int] = set()
        self._done_cost, self._begun = 0.0, time.monotonic()

    def __iter__(self) -> Iterator[int]:
        """Ends when all pieces are done: while others are at their last ones, it waits.

        Raises:
            RunError: The coordination service cannot be reached.
        """
        self._begun = time.monotonic()
        for number in self._shares[self._hosts.process]:
            if self._take("taken", number):
                yield number
        while (number := self._left()) is not None:
            if self._take("taken", number):
                yield number
        yield from self._unfinished()
        self.finished.set()

    def done(self, number: int) -> None:
        """Says that a piece is written."""
        self._hosts.put(f"done/{number}", self._hosts.process)
        self._done_cost += self._costs[number]
        self._mine.discard(number)

    def _take(self, folder, number):
        if not self._hosts.put_once(f"{folder}/{number}", self._hosts.process):
            return False
        self._mine.add(number)
        return True

    def _left(self):
        """The last piece of the process that has most left; None if all are taken."""
        taken = self._hosts.listing("taken")
        left = [[number for number in share if str(number) not in taken] for share in self._shares]
        most = max(left, key=lambda share: sum(self._costs[number] for number in share), default=[])
        return most[-1] if most else None

    def _unfinished(self):
        """Pieces that others have taken and are late with; without them it waits for all to be done."""
        since = time.monotonic()
        while True:
            done, again = self._hosts.listing("done"), self._hosts.listing("again")
            waiting = [number for share in self._shares for number in share if str(number) not in done]
            if not waiting:
                return
            late = [
                number
                for number in waiting
                if self._again
                and number not in self._mine
                and str(number) not in again
                and self._is_late(number, since)
            ]
            if late:
                number = max(late, key=self._costs.__getitem__)
                if self._take("again", number):
                    yield number
            else:
                time.sleep(_LOOK_SECONDS)

    def _is_late(self, number, since):
        now = time.monotonic()
        rate = self._done_cost / (now - self._begun)
        return rate > 0 and now - since > _LATE_SECONDS + _LATE * self._costs[number] / rate
