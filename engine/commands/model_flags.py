"""What the commands that run a model share: `evaluate` and `reproduce`."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from polarax.commands.shared_flags import define_cache_flag, define_picture_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DTYPES = ("float32", "bfloat16")


def define_model_flags(values: flags.FlagValues, *, whose: str, window: int, cka_tokens: int, cka_gib: float) -> None:
    """Defines the flags of how a model is read and run, and what is written of it.

    Args:
        values: Where to define them.
        whose: Beside which checkpoint the tokenizer is.
        window: Default of --window, and so on.
        cka_tokens: The same.
        cka_gib: The same.
    """
    flags.DEFINE_string(
        "tokenizer", None, f"tokenizer.json, or a folder with it; by default beside the {whose}.", flag_values=values
    )
    flags.DEFINE_string("config", None, "config.json, where a checkpoint has none.", flag_values=values)
    flags.DEFINE_integer("window", window, "Tokens that the model sees at once.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer(
        "batch", 0, "Windows at a time; 0: as many as 4096 tokens have.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum("dtype", _DTYPES[0], _DTYPES, "Of weights and computing.", flag_values=values)
    flags.DEFINE_integer(
        "cka_tokens", cka_tokens, "Tokens that CKA is taken of; 0: no CKA.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "cka_gib",
        cka_gib,
        "Memory for the sums of CKA; where it is too little for all layers, fewer are taken, evenly spread.",
        lower_bound=0.0,
        flag_values=values,
    )
    define_cache_flag(values)
    define_picture_flags(values)


def read_config(path: str | None) -> Mapping[str, Any] | None:
    """The settings in a config.json; None without one.

    Raises:
        UsageError: The file cannot be read, or holds something else.
    """
    if not path:
        return None
    from polarax.errors import UsageError
    from polarax.evaluation.tokens import read_text

    try:
        settings = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: holds no object of settings.")
    return settings


def write_pictures(
    values: flags.FlagValues,
    found: Any,
    draw: "Callable[[Any], Mapping[str, Figure]]",
    write_page: "Callable[[Any, Mapping[str, Figure]], pathlib.Path]",
) -> Iterator[str]:
    """Draws and writes what the flags ask for of what was found; yields a line on each file as it is there.

    Raises:
        UsageError: A package is not installed.
        RunError: A file cannot be written.
    """
    from polarax.report.plots.gallery import write_plots

    if not values.plots:
        return
    figures = draw(found)
    for path in write_plots(figures, found.path / "plots"):
        yield f"Plot: {path}"
    if values.report:
        yield f"Report: {write_page(found, figures)}"
