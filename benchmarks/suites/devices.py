"""How time falls with the number of devices: `polarax compare` on one stack of small matrices.

On a CPU the devices are simulated, and share the cores there are: flat is the best to expect beyond
as many devices as cores. The time is what the run itself says it computed for; each number of devices
needs a process of its own, for a backend cannot change it.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import programs
from benchmarks.cases import Case, Record
from benchmarks.options import Options
from benchmarks.shapes import shrunk

_COUNTS = (1, 2, 4, 8)
_SHORT_COUNTS = (1, 2)
# Matrices, and their shape; a stack that divides over every number of devices above.
_MATRICES = 32
_SHAPE = (192, 576)
# Seconds to start a backend and count its devices.
_QUERY_LIMIT = 120


def cases(options: Options) -> list[Case]:
    """One case: the numbers of devices take turns."""
    return [Case("devices", functools.partial(_run, options))]


def _run(options) -> list[Record]:
    backend, real = _devices()
    counts = _SHORT_COUNTS if options.short else _COUNTS
    if backend != "cpu":
        counts = tuple(count for count in counts if count <= real)
    rows, cols = (shrunk(size, options.shrink) for size in _SHAPE)
    samples: dict[int, list[float]] = {count: [] for count in counts}
    first: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="polarax-bench-") as name:
        folder = pathlib.Path(name)
        stack = f"--stack={_MATRICES}x{rows}x{cols}"
        files = programs.write_checkpoints(folder, [stack, f"--seed={options.seed}"], limit=options.limit)
        out, cache = folder / "run", programs.cache_environment(folder / "cache")
        flags = ["--plots=false", *(["--metrics=rotation"] if options.short else [])]
        command = programs.compare_command(*files, out, *flags)
        for turn in range(1 + (1 if options.short else options.repeats)):
            for count in counts:
                environment = cache | _environment(backend, count)
                programs.run(command, environment=environment, limit=options.limit)
                seconds = programs.run_seconds(out)["run_compute_seconds"]
                if turn:
                    samples[count].append(seconds)
                else:
                    first[count] = seconds
    return [
        {
            "case": f"{_MATRICES}x{rows}x{cols} on {count} devices",
            "contestant": "polarax compare",
            "reference": count == counts[0],
            "simulated": backend == "cpu",
            "size": count,
            "devices": count,
            "rows": rows,
            "cols": cols,
            "count": _MATRICES,
            "first_seconds": first[count],
            "samples": samples[count],
            "calls": 1,
        }
        for count in counts
    ]


def _devices():
    script = "import jax; print(jax.default_backend(), jax.local_device_count())"
    printed = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=_QUERY_LIMIT,
        check=True,
    ).stdout.split()
    return printed[-2], int(printed[-1])


def _environment(backend, count):
    if backend == "cpu":
        flag = f"--xla_force_host_platform_device_count={count}"
        return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    visible = ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible, "TPU_VISIBLE_CHIPS": visible}
