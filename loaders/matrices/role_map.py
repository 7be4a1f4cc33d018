"""A user's own table: regular expressions for names, with the role of what they match."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from polarax.loaders.architectures import Identity, Rule
from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.roles import ROLES

_GROUPS = {"layer", "expert"}
_WORDS = {"o", "i", "L", "E", "1"}
_DIGITS = 6  # of a layer or an expert, as in the tables
_LARGEST_FILE = 2**20  # bytes; a table of every name of a model of 10,000 tensors fits


class _Line(NamedTuple):
    pattern: re.Pattern[str]
    rule: Rule


class RoleMap:
    """A parsed table; the first expression found in a name decides."""

    def __init__(self, lines: tuple[_Line, ...]):
        self._lines = lines

    def describe(self) -> list[list[str]]:
        """Expression, role and axes of each line, in order; JSON-ready."""
        return [[pattern.pattern, *map(str, rule)] for pattern, rule in self._lines]

    def look_up(self, name: str) -> tuple[Identity, Rule] | None:
        """What a tensor is; None if no expression is found in its name."""
        for pattern, rule in self._lines:
            match = pattern.search(name)
            if match is not None and all(len(text or "") <= _DIGITS for text in match.groupdict().values()):
                numbers = {group: int(text) for group, text in match.groupdict().items() if text is not None}
                return Identity(numbers.get("layer"), rule.role, numbers.get("expert")), rule
        return None


RoleMapSource: TypeAlias = "RoleMap | Mapping[str, Any] | str | os.PathLike | None"


def parse_role_map(source: RoleMapSource) -> RoleMap | None:
    r"""Reads a user's table.

    >>> table = parse_role_map({r"blocks\.(?P<layer>\d+)\.attn\.wo": "o"})
    >>> table.look_up("blocks.3.attn.wo.weight")[0]
    Identity(layer=3, role='o', expert=None)

    Args:
        source: A mapping, or the path of a JSON file with one object. Keys are regular expressions, searched in the
            name of a tensor; the named groups "layer" and "expert" are numbers. Values are a role, or an object of
            "role" and "axes": a word for each axis of the tensor, "o" output, "i" input, "L" layers, "E" experts,
            such as {"role": "down", "axes": "E i o"}. Without axes a tensor is a matrix of (out, in).

    Returns:
        The table; None for None.

    Raises:
        CheckpointError: If the file cannot be read, or an entry cannot be used: it names which and why.
    """
    if source is None or isinstance(source, RoleMap):
        return source
    where = "role_map"
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        source = _load(where)
    if not isinstance(source, Mapping) or not source:
        raise CheckpointError(f"{where}: expected an object of regular expressions to roles")
    return RoleMap(tuple(_line(where, pattern, value) for pattern, value in source.items()))


def _load(path: str) -> Any:
    try:
        if os.path.getsize(path) > _LARGEST_FILE:
            raise CheckpointError(f"{path}: too large for a table of roles (limit {_LARGEST_FILE} bytes)")
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON: {error}") from error


def _line(where: str, pattern: Any, value: Any) -> _Line:
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise CheckpointError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
    unknown = set(compiled.groupindex) - _GROUPS
    if unknown:
        raise CheckpointError(f"{where}: {pattern!r} has the group {min(unknown)!r}; expected layer or expert")
    for group in compiled.groupindex:
        if not re.search(rf"\(\?P<{group}>(?:\\d|\[0-9\])(?:\+|\{{\d*,?\d*\}})?\)", pattern):
            raise CheckpointError(rf"{where}: {pattern!r}: the group {group!r} must be of digits: (?P<{group}>\d+)")
    rule = Rule(value) if isinstance(value, str) else _rule(where, pattern, value)
    if rule.role not in ROLES:
        raise CheckpointError(f"{where}: {pattern!r}: unknown role {rule.role!r}; expected one of {', '.join(ROLES)}")
    return _Line(compiled, rule)


def _rule(where: str, pattern: str, value: Any) -> Rule:
    if not isinstance(value, Mapping) or not {"role"} <= set(value) <= {"role", "axes"}:
        raise CheckpointError(
            f'{where}: {pattern!r}: expected a role, or an object of "role" and "axes". Got {value!r}'
        )
    axes = value.get("axes", "o i")
    if not isinstance(axes, str) or not set(axes.split()) <= _WORDS or not {"o", "i"} <= set(axes.split()):
        raise CheckpointError(
            f"{where}: {pattern!r}: axes must be words of o, i, L, E and 1, with an o and an i. Got {axes!r}"
        )
    return Rule(str(value["role"]), axes)
