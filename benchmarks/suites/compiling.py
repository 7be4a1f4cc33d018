"""`polarax compare` with nothing compiled before, on one layer: by XLA's own settings, and by those of the package.

The package has its programs compiled with options of its own (`polarax.measuring.program_cache`), unless XLA_FLAGS has
a say in them: so XLA's own are asked for. On a warm cache both show what such programs take to run.
"""

import functools
import pathlib
import tempfile

from benchmarks import programs
from benchmarks.cases import Case, Record, raced
from benchmarks.options import Options
from benchmarks.timing import Contestant

_MODEL, _LAYERS = "qwen2.5-1.5b", 1
_SHRINK, _SHRINK_SHORT = 4, 12
# A case is several cold starts, so it may take this many times --limit.
_PATIENCE = 4.0
# What XLA does by itself, as flags.
_OF_XLA = "--xla_cpu_use_fusion_emitters=true"


def cases(options: Options) -> list[Case]:
    """Without a cache, and with a warm one."""
    return [
        Case(f"compiling, {which} cache", functools.partial(_race, options, which), _PATIENCE)
        for which in ("no", "warm")
    ]


def _race(options, which) -> list[Record]:
    with tempfile.TemporaryDirectory(prefix="polarax-bench-") as name:
        folder = pathlib.Path(name)
        shrink = options.shrink * (_SHRINK_SHORT if options.short else _SHRINK)
        arguments = [f"--model={_MODEL}", f"--shrink={shrink}", f"--seed={options.seed}", f"--layers={_LAYERS}"]
        base, post = programs.write_checkpoints(folder, arguments, limit=options.limit)

        def contestant(name, environment):
            flags = ["--plots=false", "--report=false"]
            if which == "no":
                flags.append("--compilation_cache=")
            else:
                environment = environment | programs.cache_environment(folder / f"cache of {name}")
            command = programs.compare_command(base, post, folder / f"run of {name}", *flags)
            return Contestant(name, programs.Program(command, environment, options.limit))

        contestants = [
            contestant("polarax compare", {}),
            contestant("the same by XLA's own settings", {"XLA_FLAGS": _OF_XLA}),
        ]
        return raced(contestants, options, case=f"one layer, {which} cache", model=_MODEL, layers=_LAYERS)
