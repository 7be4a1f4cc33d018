"""Errors whose message is one line for the person who typed the command."""

from polarax.loaders import CheckpointError
from polarax.loaders.stores.addresses import redact


class UsageError(ValueError):
    """What was asked for cannot be done: an unknown role, a folder that is not a run, and the like."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class RunError(RuntimeError):
    """A run failed part-way; what it had finished is kept."""

    def __init__(self, message: str):
        super().__init__(redact(message))


# What the command line prints as one line, with exit code 2; a RunError gives exit code 1.
INPUT_ERRORS = (CheckpointError, UsageError)
