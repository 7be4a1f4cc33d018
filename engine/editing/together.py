"""An edit that several processes are at: the first one prepares the drafts, and each puts its matrices into them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from polarax.editing.execution import Work, plan_stacks, run_stacks
from polarax.editing.journal import Journal, PartJournal
from polarax.hosts import Hosts
from polarax.loaders import Draft
from polarax.measuring.progress import SharedProgress
from polarax.measuring.together import noted, shared_out
from polarax.planning.devices import most_lanes
from polarax.planning.stacks import Stack

# How long the other processes wait for the first, which copies the whole checkpoint beforehand.
FIRST_SECONDS = 24 * 3600


def tell_nothing(hosts: Hosts) -> None:
    """Says, on the first process, that all is finished already."""
    hosts.put("missing", None)


def edit_together(work: Work, stacks: Sequence[Stack], drafts: Sequence[Draft], journal: Journal, hosts: Hosts) -> None:
    """The first process's part: says what is missing, edits what it takes of that, and gathers what all have finished.

    Raises:
        RunError: A checkpoint can no longer be read, or another process is gone.
        OSError: A draft cannot be written.
    """
    hosts.put("missing", {"finished": sorted(journal.finished), "lanes": most_lanes()})
    _edit(work, stacks, drafts, journal.add, hosts)
    journal.take_parts()


def take_part(work: Work, folder: pathlib.Path, drafts: Callable[[pathlib.Path], list[Draft]], hosts: Hosts) -> None:
    """What every other process does.

    Args:
        work: What is to be done.
        folder: Of the edit under way.
        drafts: Opens the drafts in a folder, which are prepared.
        hosts: The processes.

    Raises:
        RunError: A checkpoint can no longer be read, or another process is gone.
        OSError: A draft cannot be written.
    """
    hosts.note(doing="waiting for the drafts")
    missing = hosts.get("missing", FIRST_SECONDS)
    if missing is None:
        return
    with PartJournal(folder, hosts.process) as journal:
        stacks = plan_stacks(work, missing["finished"], missing["lanes"])
        _edit(work, stacks, drafts(journal.drafts), journal.add, hosts)


def _edit(
    work: Work,
    stacks: Sequence[Stack],
    drafts: Sequence[Draft],
    add: Callable[[list[dict[str, Any]]], None],
    hosts: Hosts,
) -> None:
    cut, taking, place = shared_out(stacks, hosts, again=False)  # what comes late would find the drafts moved

    def finish(piece: Stack, rows: list[dict[str, Any]]) -> None:
        add(rows)
        taking.done(place[piece.number, piece.start])

    with SharedProgress(hosts, cut) as shown:
        run_stacks(work, noted(taking, cut, hosts), drafts, finish, shown)
    hosts.complete = True
