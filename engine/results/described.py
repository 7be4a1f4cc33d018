"""A folder with a run.json, which says what was run."""

import functools
import json
import pathlib
import tempfile

from polarax.errors import UsageError
from polarax.results.directory import RUN_FILE, is_first_look


class Described:
    """A run, or the runs of several posts, read from their folder."""

    def __init__(self, path: pathlib.Path, temporary: tempfile.TemporaryDirectory | None = None):
        self.path = path
        self._temporary = temporary  # removed with the last reference to what is in it

    def keep_alive(self, temporary: tempfile.TemporaryDirectory | None) -> None:
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
        if self._temporary is not None:
            return self.description.get("as_typed"), None
        levels = len(pathlib.PurePath(self.description.get("within", "")).parts)
        path = self.path if len(self.path.parts) > levels else self.path.absolute()
        return self.description.get("as_typed"), str([path, *path.parents][levels])

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
        raise UsageError(f"Run {path} has a {RUN_FILE} that is not JSON: {error}.") from error
