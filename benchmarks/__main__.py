"""Measures polarax and what a user would run instead, side by side.

    python -m benchmarks [--short] [--suites=...] [--peers=...] [--out=DIR]
    python -m benchmarks compare OLD.json NEW.json

Writes results.json, results.md and plots. A step that hangs is ended at --limit and reported. Exit
codes: 0 measured, 1 something failed or hung, 2 bad flags.
"""

import dataclasses
import math
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from absl import flags

from benchmarks import environment, options, steps, suites

# How --seconds are shared out among the modules; what one leaves, the later ones have.
_SHARES = {
    "floor": 12,
    "accuracy": 45,
    "kernels": 35,
    "batch": 25,
    "growth": 25,
    "devices": 25,
    "commands": 85,
    "pair_floor": 40,
    "pairs": 70,
    "reading": 40,
    "memory": 25,
    "planning": 10,
    "compiling": 30,
    "tracking": 25,
}


def main(arguments: Sequence[str]) -> int:
    """Runs the suites, or compares two files; returns the exit code."""
    values = flags.FlagValues()
    options.define_flags(values)
    flags.DEFINE_string(
        "out",
        None,
        "Folder for the results; by default runs/benchmarks/ and the time.",
        flag_values=values,
    )
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in arguments):
        print(_help(values))
        return 0
    try:
        positional = values(["benchmarks", *arguments])[1:]
        if positional[:1] == ["compare"]:
            return _compare(positional[1:])
        if positional:
            raise flags.Error(f"Unexpected argument {positional[0]!r}. Expected flags or compare.")
        chosen = options.from_flags(values)
        folder = _folder(values.out)
    except (flags.Error, options.OptionError) as error:
        return _fail(error)
    return _measure(chosen, folder, arguments)


def _measure(chosen, folder, arguments):
    environment.set_threads(chosen.threads)
    environment.set_up_workers()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended too
    began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    load = environment.load()
    gathered = steps.Gathered([], [])

    def show(line):
        print(f"[{time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)

    steps.run_module("environment", "benchmarks.suites.describe", chosen, gathered, deadline=math.inf, show=show)
    if not gathered.records:
        return _fail(f"The environment could not be read: {gathered.problems[0].what}", code=1)
    described = gathered.records.pop()["environment"]

    from benchmarks.report import results

    def write():
        run = results.Results(
            command=" ".join(["python -m benchmarks", *_without_paths(arguments)]),
            started=started,
            seconds=time.monotonic() - began,
            options=dataclasses.asdict(chosen),
            environment=described,
            load=(load, environment.load()),
            records=results.gathered(gathered.records),
            problems=tuple(gathered.problems),
        )
        return run, results.write(run, folder)

    try:
        for suite, module, seconds in _schedule(chosen.suites, began + chosen.seconds):
            module = f"benchmarks.suites.{module}"
            deadline = time.monotonic() + seconds
            steps.run_module(suite, module, chosen, gathered, deadline=deadline, show=show)
            write()  # hours of a full run should not be lost to what ends it
    except KeyboardInterrupt:
        interrupted = "interrupted: it and what follows were not run"
        gathered.problems.append(steps.Problem(suite, module, interrupted, failed=True))
    return _report(*write(), folder)


def _schedule(chosen_suites, end):
    """Suite, module and its seconds; shared out anew before each from what is left until `end`."""
    order = [(suite, module) for suite in chosen_suites for module in suites.MODULES[suite]]
    for index, (suite, module) in enumerate(order):
        share = _SHARES[module] / sum(_SHARES[later] for _, later in order[index:])
        yield suite, module, share * max(0.0, end - time.monotonic())


def _report(run, path, folder):
    from benchmarks.report import page, plots

    paths = [path]
    try:
        drawn = plots.write_plots(run.records, folder)
    except ImportError:
        drawn = []
        print("No plots: matplotlib is not installed.", file=sys.stderr)
    text = page.page(run, [path.name for path in drawn])
    paths += [folder / "results.md", *drawn]
    paths[1].write_text(text, encoding="utf-8")
    print(text)
    for path in paths:
        print(f"Written: {path}")
    failed = [problem for problem in run.problems if problem.failed]
    if failed:
        first = failed[0]
        print(
            f"benchmarks: {len(failed)} failed, listed under 'Not measured'; the first: "
            f"{first.suite}: {first.case}: {first.what}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _compare(files):
    if len(files) != 2:
        raise flags.Error(f"compare takes two files, OLD.json and NEW.json. Got {len(files)}.")
    from benchmarks.report.comparison import compare_files
    from benchmarks.report.results import ResultsError

    try:
        print(compare_files(*files))
    except ResultsError as error:
        return _fail(error)
    return 0


def _folder(given):
    path = pathlib.Path(given or time.strftime("runs/benchmarks/%Y%m%dT%H%M%SZ", time.gmtime()))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise options.OptionError(f"--out={path} cannot be made: {error.strerror}.") from error
    return path


def _without_paths(arguments):
    """The arguments without --out: where results were written is nobody's business later."""
    kept, skip = [], False
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if skip or name == "out":
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return kept


def _help(values):
    lines = [__doc__.strip(), "", "flags:"]
    for name in sorted(values):
        flag = values[name]
        if name == flag.name and flag.help is not None:
            shown = (flag.default_as_str or "").strip("'")
            default = "" if flag.default in (None, False, [], "") else f" [{shown}]"
            lines += [f"  --{name}{default}", f"      {' '.join(flag.help.split())}"]
    return "\n".join(lines)


def _fail(error, code=2):
    print(f"benchmarks: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
