"""What commands that write a folder share; nothing here takes time to import, since `--help` is to take none."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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


def define_host_flags(values: flags.FlagValues) -> None:
    """Defines which processes a run is divided over."""
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "Whether several processes share the run: auto if these flags, the environment or JAX say so; on refuses to "
        "run alone; off does.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, the same for every process.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many processes run this command.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "initialization_timeout", 60, "Seconds within which all have to be there.", lower_bound=1, flag_values=values
    )


def cluster_from_flags(values: flags.FlagValues) -> Any:
    """The `polarax.hosts.Cluster` that these flags, the environment or JAX's detection say; None of a process alone.

    Raises:
        UsageError: Something of it is missing or contradicts itself.
    """
    from polarax.hosts import find_cluster

    return find_cluster(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        mode=values.distributed,
        seconds=values.initialization_timeout,
    )


@contextlib.contextmanager
def joined_from_flags(values: flags.FlagValues, folder: Any = None) -> Iterator[Any]:
    """The `polarax.hosts.Hosts` that share the run while it lasts; None for a process alone.

    Args:
        values: The flags.
        folder: That all of them see; that of --out by default.

    Raises:
        UsageError: The processes cannot be joined as the flags say.
        RunError: The processes do not fit together.
    """
    cluster = cluster_from_flags(values)
    if cluster is None:
        yield None
        return
    from polarax.hosts import joined

    with joined(cluster, folder or values.out, values.initialization_timeout) as hosts:
        yield hosts


def planned_devices(hosts: Any, seconds: float = 600) -> Sequence[int] | None:
    """Devices and lanes that all processes plan with: those of the first; None for a process alone."""
    if hosts is None:
        return None
    from polarax.planning.request import local_layout

    return hosts.from_first("layout", local_layout(), seconds)
