"""Reading a pair of checkpoints: polarax against plain reads, safetensors' own `safe_open` and orbax's restore.

Warm: the files are in the page cache. Cold: their pages are dropped before every call, so that the disk is what is
measured (where the operating system lets a process ask for that). Then whole runs against reading and computing alone:
who overlaps the two takes little more than the longer one.
"""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
from safetensors import safe_open

import polarax
from benchmarks import programs
from benchmarks.cases import Case, Record, raced
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from benchmarks.timing import Contestant
from polarax.measuring.stack_reads import StackReads
from polarax.planning.options import Options as ComparisonOptions
from polarax.planning.request import check_request

# Matrices of the pair that is read, 1 GiB on each side, and of the one that is analysed as well.
_STACK, _SHORT_STACK = (64, 4096, 2048), (8, 1024, 512)
_RUN_STACK, _SHORT_RUN_STACK = (64, 1024, 256), (4, 256, 64)
# Of the buffer that plain reads go into, again and again.
_BUFFER_BYTES = 8 * 2**20


def cases(options: Options) -> list[Case]:
    """Warm, cold, and whole runs."""
    cold = [Case("reading, cold", functools.partial(_reading, options, cold=True))]
    return [
        Case("reading, warm", functools.partial(_reading, options, cold=False)),
        *(cold if hasattr(os, "posix_fadvise") else []),
        Case("whole runs", functools.partial(_runs, options)),
    ]


def _reading(options, *, cold) -> list[Record]:
    with _pair(options, _SHORT_STACK if options.short else _STACK) as (folder, files, shape):
        size = sum(file.stat().st_size for file in files)
        trees = [_save_with_orbax(file, folder / file.stem) for file in files]
        readers: dict[str, tuple[Callable[[], object], list[pathlib.Path]]] = {
            "polarax": (_our_reads(*files), files),
            "plain sequential reads": (functools.partial(_read_plainly, files, bytearray(_BUFFER_BYTES)), files),
            "plain reads into memory": (functools.partial(_read_plainly, files, _memory(files)), files),
            "safe_open": (functools.partial(_read_by_safe_open, files), files),
            "polarax, orbax checkpoint": (_our_reads(*trees), trees),
            "orbax restore": (functools.partial(_restore_with_orbax, trees), trees),
        }
        contestants = [
            Contestant(name, functools.partial(_after_dropping, paths, read) if cold else read)
            for name, (read, paths) in readers.items()
        ]
        kind = "cold" if cold else "warm"
        return raced(contestants, options, case=f"reading {shape} bfloat16, twice, {kind}", bytes=size, **_sizes(shape))


def _runs(options) -> list[Record]:
    with _pair(options, _SHORT_RUN_STACK if options.short else _RUN_STACK) as (_, files, shape):
        in_memory = [_in_memory(file) for file in files]
        contestants = [
            Contestant("polarax.compare", functools.partial(_compare, *files)),
            Contestant("polarax.compare, weights in memory", functools.partial(_compare, *in_memory)),
            Contestant("reading alone", _our_reads(*files)),
        ]
        return raced(contestants, options, case=f"whole run {shape} bfloat16, twice", **_sizes(shape))


class _pair:
    """A folder with base.safetensors and post.safetensors for as long as the context lasts."""

    def __init__(self, options, stack):
        count, rows, cols = stack
        self._shape = f"{count}x{shrunk(rows, options.shrink)}x{shrunk(cols, options.shrink)}"
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="polarax-bench-")

    def __enter__(self):
        folder = pathlib.Path(self._folder.name)
        arguments = [f"--stack={self._shape}", "--same", f"--seed={self._options.seed}"]
        return folder, programs.write_checkpoints(folder, arguments, limit=self._options.limit), self._shape

    def __exit__(self, *_):
        self._folder.cleanup()


def _sizes(shape):
    count, rows, cols = map(int, shape.split("x"))
    return {"count": count, "rows": rows, "cols": cols}


def _our_reads(base, post):
    """Reads every stack of a comparison, in the order and the memory of a run, and computes nothing."""

    def read():
        request = check_request(base, post, ComparisonOptions(memory_gib=1.0))
        with StackReads(request.base, list(request.posts.values()), request.plan.stacks) as reads:
            for _ in reads:
                pass

    return read


def _memory(files):
    """Memory for the largest file, its pages there already."""
    return np.ones(max(file.stat().st_size for file in files), np.uint8)


def _read_plainly(files, buffer):
    """Reads files from the first byte to the last, buffer after buffer; one file may fill it only in part."""
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _read_by_safe_open(files):
    for file in files:
        with safe_open(file, framework="flax") as checkpoint:
            for name in checkpoint.keys():
                checkpoint.get_tensor(name).block_until_ready()


def _in_memory(file):
    checkpoint = polarax.open_checkpoint(file)
    return {name: np.array(checkpoint.read(name).result()) for name in checkpoint.names()}


def _save_with_orbax(file, folder):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, _in_memory(file))
    return folder


def _restore_with_orbax(folders):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        for folder in folders:
            checkpointer.restore(folder)


def _compare(base, post):
    polarax.compare(base, post, progress=False)


def _after_dropping(paths, read):
    """Reads after the page cache has let go of the files."""
    for path in paths:
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read()
