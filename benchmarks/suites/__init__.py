"""The suites. Each module has `cases(options) -> list[Case]`."""

# Suite of --suites -> its modules, each run in a process of its own.
MODULES = {
    "floor": ("floor",),
    "accuracy": ("accuracy",),
    "kernels": ("kernels",),
    "batch": ("batch",),
    "growth": ("growth", "devices"),
    "pairs": ("commands", "pair_floor", "pairs"),
    "reading": ("reading", "memory", "planning"),
    "compiling": ("compiling",),
    "tracking": ("tracking",),
}
