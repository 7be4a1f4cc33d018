"""`polarax plan` on headers shaped like DeepSeek-V3's: about 90,000 tensors in 163 shards, of which nothing is read.

The published files hold a scale beside each weight; here there are twice the experts instead, all of which are planned.
The files have holes in place of their tensors.
"""

import functools
import pathlib
import re
import sys
import tempfile

from benchmarks import programs
from benchmarks.cases import Case, Record, raced
from benchmarks.checkpoints import model_tensors
from benchmarks.headers import write_headers
from benchmarks.options import Options
from benchmarks.shapes import CONFIGS
from benchmarks.timing import Contestant

_MODEL = "deepseek-v3"
_SHORT_LAYERS = 2  # of 61
_EXPERTS = CONFIGS[_MODEL].num_experts


def cases(options: Options) -> list[Case]:
    """One case."""
    return [Case("planning", functools.partial(_run, options))]


def _run(options) -> list[Record]:
    with tempfile.TemporaryDirectory(prefix="polarax-bench-") as name:
        folder = pathlib.Path(name)
        tensors = _twice_the_experts(model_tensors(_MODEL, _SHORT_LAYERS if options.short else None, _EXPERTS))
        write_headers(folder, tensors)
        plan = [sys.executable, "-m", "polarax", "plan", f"--base={folder}"]
        contestants = [
            Contestant("polarax plan", programs.Program(plan, {}, options.limit)),
            Contestant("without its measured rate", programs.Program([*plan, "--device=none"], {}, options.limit)),
        ]
        return raced(contestants, options, case=f"plan of {len(tensors)} tensors", count=len(tensors))


def _twice_the_experts(tensors):
    tensors = list(tensors)
    others = [
        (re.sub(r"(?<=experts\.)\d+", lambda number: str(int(number[0]) + _EXPERTS), name), *size)
        for name, *size in tensors
        if ".experts." in name
    ]
    return tensors + others
