"""Peak memory of `polarax compare` under a budget, over that of a process that has only started.

Two checkpoints of 4 GiB, small matrices and large ones; --memory_gib=1. Then a few with one that by itself needs more,
which is computed all the same. This process imports neither jax nor numpy, so that the peak memory of what it starts is
theirs.
"""

import functools
import pathlib
import sys
import tempfile

from benchmarks import programs
from benchmarks.cases import Case, Record
from benchmarks.options import Options
from benchmarks.shapes import shrunk

# COUNT, rows, columns: 2 x 4 GiB in bfloat16, and 2 x 10 MiB in the short form.
_STACKS = ((2000, 4096, 256), (4, 5632, 2048))
_SHORT_STACKS = ((8, 512, 1024), (1, 2048, 512))
_STACKS_TOO_LARGE = ((20, 4096, 256), (1, 32768, 2048))
_MEMORY_GIB, _SHORT_MEMORY_GIB = 1.0, 0.25
# What polarax starts with: JAX's backend included.
_IDLE = "import jax, polarax.comparison; jax.devices()"
_PATIENCE = 2.0


def cases(options: Options) -> list[Case]:
    """What fits, and, but for the short form, what does not."""
    named = (
        {"memory": _SHORT_STACKS} if options.short else {"memory": _STACKS, "memory, one too large": _STACKS_TOO_LARGE}
    )
    return [Case(name, functools.partial(_run, options, name, shapes), _PATIENCE) for name, shapes in named.items()]


def _run(options, case, shapes) -> list[Record]:
    stacks = [(count, shrunk(rows, options.shrink), shrunk(cols, options.shrink)) for count, rows, cols in shapes]
    budget = _SHORT_MEMORY_GIB if options.short else _MEMORY_GIB
    with tempfile.TemporaryDirectory(prefix="polarax-bench-") as name:
        folder = pathlib.Path(name)
        arguments = [f"--stack={','.join('x'.join(map(str, stack)) for stack in stacks)}", "--same"]
        files = programs.write_checkpoints(folder, arguments, limit=_PATIENCE * options.limit)
        stored = sum(file.stat().st_size for file in files)
        cache = programs.cache_environment(folder / "cache")
        command = programs.compare_command(*files, folder / "run", f"--memory_gib={budget}", "--plots=false")
        idle = programs.run([sys.executable, "-c", _IDLE], environment=cache, limit=options.limit)
        usage = programs.run(command, environment=cache, limit=_PATIENCE * options.limit)
    return [
        {
            "case": f"{case}, {stored / 2**30:.2g} GiB of weights, --memory_gib={budget:g}",
            "contestant": "polarax compare",
            "reference": True,
            "first_seconds": usage.seconds,
            "samples": [usage.seconds],
            "calls": 1,
            "bytes_stored": stored,
            "budget_bytes": int(budget * 2**30),
            "idle_bytes": idle.peak_bytes,
            "peak_bytes": usage.peak_bytes,
        }
    ]
