"""What `compare`, `history` and `plan` share: the flags of checkpoints and options, and how lines are printed."""

import dataclasses
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from absl import flags

from polarax.errors import UsageError
from polarax.planning.options import Options
from polarax.planning.post_labels import one_post
from polarax.planning.request import Request, check_request
from polarax.results.run import Run
from polarax.results.runs import Runs


def define_comparison_flags(values: flags.FlagValues) -> None:
    """Defines the flags of a base and its posts."""
    flags.DEFINE_string("base", None, "Checkpoint before training: file, folder or URL.", flag_values=values)
    flags.DEFINE_multi_string(
        "post",
        [],
        "Checkpoint after training; may be repeated, then as PATH or LABEL=PATH, to compare several with one base",
        flag_values=values,
    )
    flags.DEFINE_boolean("between", True, "Compare several posts with each other too.", flag_values=values)
    define_option_flags(values)


def define_option_flags(
    values: flags.FlagValues, *, only: Collection[str] | None = None, verb: str = "compare"
) -> None:
    """Defines a flag for each field of `Options`, or for some, of the kind of its default; `verb` is what is done."""
    kinds: dict[type, Callable[..., Any]] = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        type(None): flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    for field in dataclasses.fields(Options):
        if only is not None and field.name not in only:
            continue
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        given = field.metadata["help"]
        text = (given() if callable(given) else given).replace("to compare", f"to {verb}")
        kinds[type(field.default)](field.name, default, text, flag_values=values)


def options_from_flags(values: flags.FlagValues) -> Options:
    """The options that the flags of `define_option_flags` say."""
    given: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(Options)}
    return Options(**given | {"role_map": values.role_map or None})


def request_from_flags(
    values: flags.FlagValues,
    *,
    post_required: bool = True,
    refused: list[Exception] | None = None,
    devices: Sequence[int] | None = None,
) -> Request:
    """Opens the checkpoints and checks the flags; reads headers alone.

    Args:
        values: The flags.
        post_required: Whether there must be a --post; otherwise the base stands in for one that is missing.
        refused: Takes the errors of posts of which too little can be compared; without it they are raised.
        devices: What to plan for: see `check_request`.

    Raises:
        UsageError: A flag is missing or cannot be met.
        CheckpointError: A checkpoint cannot be read.
    """
    for name in ("base", "post") if post_required else ("base",):
        if values[name].value in (None, "", [], [""]):
            raise UsageError(f"--{name} is missing: the checkpoint to compare.")
    post = one_post(values.post) if values.post else values.base
    options = options_from_flags(values)
    return check_request(values.base, post, options, between=values.between, refused=refused, devices=devices)


def print_closer(run: Run | Runs) -> None:
    """Prints which matrices of a first look stand out, and the command that looks closer at them: in one line."""
    if run.first_look:
        closer = run.closer()
        print()
        print_wrapped([closer.sentence])
        if closer.command:
            print(f"  {closer.command}")


def print_wrapped(lines: Iterable[str], width: int = 110) -> None:
    """Prints lines and sentences, each within the width of a terminal; what goes on is indented more."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        print(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False))
