"""What commands that write a folder share; nothing here takes time to import, since `--help` is to take none."""

from collections.abc import Iterable

from absl import flags


def define_cache_flag(values: flags.FlagValues) -> None:
    """Defines where compiled programs are kept."""
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/polarax", "Folder that keeps compiled programs; '' for none.", flag_values=values
    )


def enable_cache(values: flags.FlagValues) -> None:
    """Keeps compiled programs where that flag says."""
    if values.compilation_cache:
        from polarax.planning.devices import enable_compilation_cache

        enable_compilation_cache(values.compilation_cache)


def define_picture_flags(values: flags.FlagValues) -> None:
    """Defines whether pictures are drawn, and a page of them is written."""
    flags.DEFINE_boolean("plots", True, "Draw pictures (needs matplotlib).", flag_values=values)
    flags.DEFINE_boolean("report", True, "Write report.html of the pictures (needs jinja2).", flag_values=values)


def require(values: flags.FlagValues, **what: str) -> None:
    """Refuses a command without these flags; `what` says of each what it is.

    Raises:
        UsageError: One is missing.
    """
    from polarax.errors import UsageError

    for name, meaning in what.items():
        if not values[name].value:
            raise UsageError(f"--{name} is missing: {meaning}.")


def print_files(lines: Iterable[str]) -> None:
    """Prints a line on each picture and page as it is there, or which package is not installed for the rest."""
    from polarax.errors import UsageError

    try:
        for line in lines:
            print(line)
    except UsageError as error:  # the numbers are there all the same
        print(error)
