"""What a run of the benchmarks was asked to do."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence

from absl import flags

from benchmarks.shapes import CONFIGS
from benchmarks.suites import MODULES

# Suites in the order in which they run: the floor first, since every rate is given as a share of it.
SUITES = tuple(MODULES)
# Peer -> the module it needs beside numpy and jax, which polarax needs itself.
PEERS = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "jnp": "jax",
    "weightwatcher": "weightwatcher",
}
# Suites that report rates, and so need the floor.
_RATES = {"kernels", "batch", "growth", "pairs"}


class OptionError(ValueError):
    """A flag that cannot be met; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Checked flags."""

    suites: tuple[str, ...]
    models: tuple[str, ...]
    layers: int | None  # layers of a model that are synthesised; None for all
    repeats: int  # rounds of a race
    threads: int
    peers: tuple[str, ...]
    methods: tuple[str, ...]  # () for every method polarax has
    short: bool
    shrink: int  # every dimension is divided by this: for trials of the suite itself
    limit: float  # seconds a case may take before its process is ended
    seconds: float  # for the whole run; infinite for all of it
    seed: int
    missing: tuple[str, ...] = ()  # peers left out because they are not installed

    @property
    def race_seconds(self) -> float:
        """Seconds after which a race starts no further round."""
        return 3.0 if self.short else 120.0


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of a run."""
    flags.DEFINE_boolean(
        "short",
        False,
        "Small sizes and few rounds: ends within about six minutes on two cores. What does not "
        "fit is left out, and named.",
        flag_values=values,
    )
    flags.DEFINE_list("suites", list(SUITES), f"Suites to run, from {','.join(SUITES)}.", flag_values=values)
    flags.DEFINE_list(
        "models",
        None,
        f"Models whose shapes are measured, from {','.join(CONFIGS)}; qwen2.5-1.5b by default, "
        "qwen2.5-0.5b with --short.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "layers",
        None,
        "Layers of each model to synthesise, a number or all; 2 by default, 1 with --short.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "repeats",
        None,
        "Rounds in which contestants take turns; 7 by default, 3 with --short.",
        flag_values=values,
    )
    flags.DEFINE_integer("threads", None, "Threads and cores for everybody; all cores by default.", flag_values=values)
    flags.DEFINE_list(
        "peers",
        None,
        f"What to measure against, from {','.join(PEERS)}; by default those that are installed, "
        "and none for --peers= .",
        flag_values=values,
    )
    flags.DEFINE_list(
        "methods",
        None,
        "Methods of polarax to measure in the accuracy and kernels suites; all by default.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "shrink",
        1,
        "Divides every dimension: a trial of the suite itself, its figures mean nothing.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "limit",
        None,
        "Seconds one case may take before its process is ended; 900 by default, 90 with --short.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "seconds",
        None,
        "Time for the whole run, shared out among the suites: no case is begun after it, and one "
        "that goes on for long is ended. 320 with --short, no bound otherwise.",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Seed of every synthesised matrix.", flag_values=values)


def from_flags(values: flags.FlagValues) -> Options:
    """Checks the flags.

    Raises:
        OptionError: A name is unknown, a number is out of range, or a peer is not installed.
    """
    short = values.short
    suites = _known("suites", values.suites, SUITES)
    if not suites:
        raise OptionError(f"--suites is empty. Expected some of {', '.join(SUITES)}.")
    if _RATES & set(suites):
        suites = tuple(suite for suite in SUITES if suite in suites or suite == "floor")
    default_model = "qwen2.5-0.5b" if short else "qwen2.5-1.5b"
    peers, missing = _peers(values.peers)
    cores = available_cores()
    threads = _at_least("threads", values.threads, 1, cores)
    if threads > cores:
        raise OptionError(f"--threads={threads} is more than the {cores} cores there are.")
    return Options(
        suites=suites,
        models=_known("models", values.models or [default_model], CONFIGS),
        layers=_layers(values.layers, default=1 if short else 2),
        repeats=_at_least("repeats", values.repeats, 1, 3 if short else 7),
        threads=threads,
        peers=peers,
        methods=_methods(values.methods),
        short=short,
        shrink=_at_least("shrink", values.shrink, 1, 1),
        limit=_at_least("limit", values.limit, 1, 90.0 if short else 900.0),
        seconds=_at_least("seconds", values.seconds, 1, 320.0 if short else math.inf),
        seed=_at_least("seed", values.seed, 0, 0),
        missing=missing,
    )


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _known(flag, given: Sequence[str], expected):
    names = [name.strip() for name in given if name.strip()]
    for name in names:
        if name not in expected:
            raise OptionError(f"Unknown --{flag} {name!r}. Expected some of {', '.join(expected)}.")
    return tuple(name for name in expected if name in names)


def _peers(given):
    installed = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    if given is None:
        return tuple(installed), tuple(name for name in PEERS if name not in installed)
    peers = _known("peers", given, PEERS)
    for name in peers:
        if name not in installed:
            raise OptionError(f"--peers={name} needs {PEERS[name]}, which is not installed: pip install -e '.[bench]'.")
    return peers, ()


def _methods(given):
    if given is None:
        return ()
    from polarax import kernels  # imports jax, without starting a backend: only when asked

    return _known("methods", given, dict.fromkeys([*kernels.SVD_METHODS, *kernels.POLAR_METHODS]))


def _layers(given, default):
    if given is None:
        return default
    if given.strip() == "all":
        return None
    try:
        return _at_least("layers", int(given), 1, default)
    except ValueError as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"--layers={given!r} is neither a number nor all.") from None


def _at_least(flag, given, least, default):
    value = default if given is None else given
    if value < least:
        raise OptionError(f"--{flag} must be at least {least}. Got {value}.")
    return value
