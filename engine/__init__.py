"""polarax: what post-training did to a model's weights, each number beside what chance would give.

    run = polarax.compare("base/", "post/", out="run/")
    run.frame()      # one row per matrix
    run.summary()    # model level
    polarax.edit("base/", "post/", "break-left", out="edited/")  # the weights changed along these axes
    polarax.Tracker(every=100)  # the same quantities inside a training loop

`polarax.kernels` has the functions on arrays, `polarax.loaders` the checkpoints.

Importing polarax loads next to nothing: each name is fetched from its module, and JAX with it, when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarax import evaluation, kernels, loaders, tracking
    from polarax.comparison import compare
    from polarax.editing import edit
    from polarax.errors import RunError, UsageError
    from polarax.evaluation.evaluating import evaluate
    from polarax.loaders import CheckpointError, open_checkpoint
    from polarax.results.run import Run
    from polarax.results.runs import History, Runs
    from polarax.step_comparison import history
    from polarax.tracking import Tracker
    from polarax.tracking.monitor import monitor

    __version__: str

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
    "edit",
    "evaluate",
    "evaluation",
    "history",
    "kernels",
    "loaders",
    "monitor",
    "open_checkpoint",
    "tracking",
]

if not TYPE_CHECKING:
    # name -> the module that it is taken from; none for a module of that name. No module here may be named like a
    # function: importing it would put it in the function's place.
    _HOMES = {
        "CheckpointError": "loaders",
        "History": "results.runs",
        "Run": "results.run",
        "RunError": "errors",
        "Runs": "results.runs",
        "Tracker": "tracking",
        "UsageError": "errors",
        "compare": "comparison",
        "edit": "editing",
        "evaluate": "evaluation",
        "evaluation": None,
        "history": "step_comparison",
        "kernels": None,
        "loaders": None,
        "monitor": "tracking",
        "open_checkpoint": "loaders",
        "tracking": None,
    }

    def __getattr__(name):
        import importlib

        if name == "__version__":
            import importlib.metadata

            value = importlib.metadata.version("polarax")
        elif name in _HOMES:
            home = _HOMES[name]
            value = importlib.import_module(f"polarax.{home or name}")
            if home is not None:
                value = getattr(value, name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
