"""polarax: what post-training did to a model's weights, each number beside what chance would give.

    run = polarax.compare("base/", "post/", out="run/")
    run.frame()      # one row per matrix
    run.summary()    # model level
    polarax.Tracker(every=100)  # the same quantities inside a training loop

`polarax.kernels` has the functions on arrays, `polarax.loaders` the checkpoints.
"""

import importlib.metadata

from polarax import kernels, loaders
from polarax.comparison import compare
from polarax.errors import RunError, UsageError
from polarax.history import history
from polarax.loaders import CheckpointError, open_checkpoint
from polarax.results.run import Run
from polarax.results.runs import History, Runs
from polarax.tracking import Tracker, monitor

__version__ = importlib.metadata.version("polarax")

__all__ = [
    "CheckpointError",
    "History",
    "Run",
    "RunError",
    "Runs",
    "Tracker",
    "UsageError",
    "__version__",
    "compare",
    "history",
    "kernels",
    "loaders",
    "monitor",
    "open_checkpoint",
]
