"""Pieces are taken once each; what a slow or dead process has taken is done by another, and by one alone."""

import threading
import time

import pytest

from polarax.hosts import taking
from polarax.hosts.taking import Taking


class Store:
    """The coordination service's keys, in this process."""

    def __init__(self):
        self.keys, self.lock = {}, threading.Lock()


class Process:
    """One process's view of it, as `Hosts` gives it."""

    def __init__(self, store, process):
        self._store, self.process = store, process

    def put_once(self, key, value):
        with self._store.lock:
            return self._store.keys.setdefault(key, value) is value and self._first(key)

    def _first(self, key):
        mine = self._store.keys.setdefault(f"by/{key}", self.process)
        return mine == self.process

    def put(self, key, value):
        with self._store.lock:
            self._store.keys[key] = value

    def listing(self, folder):
        with self._store.lock:
            found = [key for key in self._store.keys if key.startswith(f"{folder}/")]
            return {key.rpartition("/")[2]: self._store.keys[key] for key in found}


def run(store, process, costs, shares, seconds, log):
    """A process that takes so many seconds for a unit of cost; infinitely many: it takes a piece and never ends it."""
    pieces = Taking(Process(store, process), costs, shares)
    for number in pieces:
        log.append((process, number))
        if seconds[process] == float("inf"):
            return
        time.sleep(seconds[process] * costs[number])
        pieces.done(number)


def carried_out(seconds, costs, shares):
    store, log = Store(), []
    threads = [
        threading.Thread(target=run, args=(store, process, costs, shares, seconds, log), daemon=True)
        for process in range(len(shares))
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread, each in zip(threads, seconds, strict=True):
        if each < 1:
            thread.join(60)
            assert not thread.is_alive()
    return store, log, time.monotonic() - begun


def test_equal_processes_do_every_piece_once():
    shares = [[0, 2, 4, 6], [1, 3, 5, 7]]
    _, log, _ = carried_out([0.01, 0.01], [1.0] * 8, shares)
    assert sorted(number for _, number in log) == list(range(8))


def test_who_is_done_takes_what_others_have_left_last_first():
    shares = [[0], [1, 2, 3, 4, 5]]
    _, log, _ = carried_out([0.02, 0.2], [1.0] * 6, shares)
    assert sorted(number for _, number in log) == list(range(6))
    assert [number for process, number in log if process == 0][:3] == [0, 5, 4]


@pytest.mark.parametrize("slow", [20.0, float("inf")])
def test_a_piece_that_is_late_is_done_again_by_one_process(monkeypatch, slow):
    monkeypatch.setattr(taking, "_LATE_SECONDS", 0.1)
    shares = [[0, 1], [2, 3], [4, 5]]
    store, log, _ = carried_out([0.05, 0.05, slow], [1.0] * 6, shares)
    assert {int(key.rpartition("/")[2]) for key in store.keys if key.startswith("done/")} == set(range(6))
    again = [number for process, number in log if process != 2 and number == 4]
    assert len(again) == 1
