"""The environment, read in a process of its own: the one that reports never starts a backend."""

import functools

from benchmarks import environment
from benchmarks.cases import Case, Record
from benchmarks.options import Options


def cases(options: Options) -> list[Case]:
    """One case."""
    return [Case("environment", functools.partial(_describe, options))]


def _describe(options) -> list[Record]:
    described = environment.describe(options)
    return [{"case": "environment", "contestant": "", "environment": described}]
