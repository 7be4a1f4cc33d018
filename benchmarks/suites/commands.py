"""Whole commands, as they are typed: `polarax compare` against the scripts as programs.

Both read two bfloat16 safetensors files and write their results. Start-up, imports and reading count.
The first run of each is kept apart: it fills jax's compilation cache (for the jnp script too) and the
file cache. This process imports neither jax nor numpy, so that the peak memory of what it starts is
theirs.
"""

import functools
import pathlib
import sys
import tempfile

from benchmarks import programs
from benchmarks.cases import Case, Record, raced
from benchmarks.options import Options
from benchmarks.shapes import CONFIGS, linear_layers
from benchmarks.timing import Contestant

# Scripts as programs, for each peer.
_SCRIPTS = {"torch": ("torch", "torch-careful", "torch-full"), "numpy": ("numpy",), "jnp": ("jnp",)}
# A case is many programs, so it may take this many times --limit.
_PATIENCE = 3.0
# The short form has time for one script and the headline alone.
_SHORT_SCRIPTS = ("torch",)


def cases(options: Options) -> list[Case]:
    """One case for each model."""
    return [
        Case(
            f"commands on {model}, {'all' if options.layers is None else options.layers} layer(s)",
            functools.partial(_race, options, model),
            _PATIENCE,
        )
        for model in options.models
    ]


def _race(options, model) -> list[Record]:
    with tempfile.TemporaryDirectory(prefix="polarax-bench-") as name:
        folder = pathlib.Path(name)
        arguments = [f"--model={model}", f"--shrink={options.shrink}", f"--seed={options.seed}"]
        if options.layers is not None:
            arguments.append(f"--layers={options.layers}")
        files = programs.write_checkpoints(folder, arguments, limit=options.limit)
        stored = sum(file.stat().st_size for file in files)
        layers = min(options.layers or 10**9, CONFIGS[model].num_hidden_layers)
        return raced(
            contestants(options, folder, *files),
            options,
            case=f"commands {model} {layers} layer(s)",
            model=model,
            layers=layers,
            bytes_stored=stored,
            largest_bytes=max(2 * row.rows * row.cols for row in linear_layers(CONFIGS[model])),
        )


def contestants(options: Options, folder: pathlib.Path, base: pathlib.Path, post: pathlib.Path) -> list[Contestant]:
    """`polarax compare` with its plots and without, with what the scripts measure, at a first look; every script."""
    out, cache = folder / "run", programs.cache_environment(folder / "cache")
    without = programs.compare_command(base, post, out, "--plots=false")
    with_plots = programs.compare_command(base, post, out)
    quick = programs.compare_command(base, post, out, "--plots=false", "--quick")
    script_alone = programs.compare_command(base, post, out, "--plots=false", "--metrics=scaling,rotation")

    def outcome():
        return programs.run_seconds(out)

    found = [
        Contestant("polarax compare", _program(options, without, cache, outcome)),
        Contestant("polarax compare, with plots", _program(options, with_plots, cache, outcome)),
        Contestant("polarax compare, scaling and rotation", _program(options, script_alone, cache, outcome)),
        Contestant("polarax compare, first look", _program(options, quick, cache, outcome)),
    ]
    if options.short:
        del found[1:3]
    for peer in options.peers:
        for kind in _SCRIPTS.get(peer, ()):
            if options.short and kind not in _SHORT_SCRIPTS:
                continue
            command = [sys.executable, "-m", "benchmarks.peers", kind, str(base), str(post)]
            command.append(str(folder / f"{kind}.csv"))
            # The script's programs are small; jax keeps only slow ones unless told otherwise.
            environment = cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            called = f"{kind.replace('-', ' ')} script"
            found.append(Contestant(called, _program(options, command, environment)))
    return found


def _program(options, command, environment, outcome=None):
    return programs.Program(command, environment, _PATIENCE * options.limit, outcome)
