"""A folder with a run.json, which says what was run."""

import functools
import json
import pathlib
import tempfile
from typing import TypeAlias

from polarax.errors import UsageError
from polarax.results.directory import RUN_FILE, is_first_look
from polarax.results.remote.staging import Staging, location_of

Temporary: TypeAlias = tempfile.TemporaryDirectory | Staging  # removed with the last reference to it


class Described:
    """A run, or the runs of several posts, read from their folder.

    Attributes:
        path: The folder; of what is kept in a bucket a temporary one with the same content.
    """

    def __init__(self, path: pathlib.Path, temporary: Temporary | None = None):
        self.path = path
        self._temporary = temporary

    @property
    def location(self) -> str:
        """Where it is kept: its path, or its URL in a bucket."""
        return location_of(self.path)

    def keep_alive(self, temporary: Temporary | None) -> None:
        """Keeps a temporary folder that holds this for as long as it lives."""
        self._temporary = temporary

    @functools.cached_property
    def description(self) -> dict:
        """run.json: inputs with fingerprints, flags, versions, device, state, seconds."""
        return read_description(self.path)

    @property
    def first_look(self) -> bool:
        """Whether it is a first look (`quick`), of which some matrices may have been analysed in full since."""
        return is_first_look(self.description)

    @property
    def first_command(self) -> tuple[list[str] | None, str | None]:
        """The words of the command that the first look was asked for by, and its folder; None where there is none.

        Of one of several posts, those of all of them.
        """
        if isinstance(self._temporary, tempfile.TemporaryDirectory):
            return self.description.get("as_typed"), None
        levels = len(pathlib.PurePath(self.description.get("within", "")).parts)
        location = location_of(self.path if len(self.path.parts) > levels else self.path.absolute())
        return self.description.get("as_typed"), location.rsplit("/", levels)[0] if levels else location

    @property
    def finished(self) -> bool:
        """False where something was interrupted or is still running."""
        return self.description.get("state") == "finished"


def read_description(path: pathlib.Path) -> dict:
    """What the run.json in a folder says.

    Raises:
        UsageError: It is not JSON.
    """
    try:
        return json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"Run {location_of(path)} has a {RUN_FILE} that is not JSON: {error}.") from error
