"""The command line as a user has it, and what its failures look like."""

import subprocess
import sys
from typing import NamedTuple

# Nothing is kept in the home folder of whoever runs the tests.
NO_CACHE = "--compilation_cache="


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def shell(*arguments, **options):
    """Runs a command in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "polarax", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def assert_one_line(done, *words, code=2):
    """That a command ended with one line on standard error, which says these words; a warning may come before it."""
    assert done.code == code, done
    warnings, found, error = done.err.rpartition("polarax: ")
    assert found and all("memory_gib" in line for line in warnings.splitlines()), done.err
    done = done._replace(err=f"polarax: {error}")
    assert done.err.startswith("polarax: ") and done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err and done.out == ""
    for word in words:
        assert str(word) in done.err, done.err
