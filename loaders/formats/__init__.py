"""The formats that checkpoints come in: what each is, stands in its module; which there are, stands here."""

from polarax.loaders.formats.format import Format, NoCheckpoint
from polarax.loaders.formats.gguf_checkpoint import GgufFormat
from polarax.loaders.formats.msgpack_checkpoint import MsgpackFormat
from polarax.loaders.formats.orbax_checkpoint import OrbaxFormat
from polarax.loaders.formats.parameter_tree import ParameterTreeFormat
from polarax.loaders.formats.safetensors import SafetensorsFormat

__all__ = [
    "FORMATS",
    "Format",
    "NoCheckpoint",
    "by_file",
    "by_folder",
    "by_name",
    "by_object",
    "register",
    "stem",
    "suffixes",
]

FORMATS: list[Format] = [SafetensorsFormat(), OrbaxFormat(), GgufFormat(), MsgpackFormat(), ParameterTreeFormat()]
"""In the order in which they are asked. The first one opens a file that none recognises."""


def register(format: Format) -> None:
    """Makes a format known, after those that are."""
    FORMATS.append(format)


def by_name(name: str) -> Format | None:
    """The format that a file, or the end of a URL, is of by its name; None if no name tells."""
    return next((format for format in FORMATS if format.recognises_name(name)), None)


def by_file(path: str) -> Format | None:
    """The format of a local file, by its name or by how it begins; None if it is of none."""
    return next((format for format in FORMATS if format.recognises_file(path)), None)


def by_folder(folder: str) -> Format | None:
    """The format that a local folder holds a checkpoint of; None if it holds none."""
    return next((format for format in FORMATS if format.recognises_folder(folder)), None)


def by_object(source: object) -> Format | None:
    """The format of something that is no path or URL; None if it is of none."""
    return next((format for format in FORMATS if format.recognises_object(source)), None)


def suffixes() -> tuple[str, ...]:
    """How the names of files end, of all formats, the longest first."""
    return tuple(sorted({suffix for format in FORMATS for suffix in format.suffixes}, key=lambda s: (-len(s), s)))


def stem(name: str) -> str:
    """A name without the ending that a format gives it.

    >>> stem("step_20.safetensors"), stem("checkpoint-1000")
    ('step_20', 'checkpoint-1000')
    """
    return next((name.removesuffix(suffix) for suffix in suffixes() if name.endswith(suffix)), name)
