"""Runs the trials that are not done yet; see the package's docstring.

Exit codes: 0 all that there was time for was done, 1 something failed or hung, 2 bad flags.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import time

from benchmarks import environment, steps
from benchmarks.judging.request import PARTS, Request

_MODULES = {part: f"benchmarks.judging.{part}" for part in PARTS}


def main(arguments: list[str]) -> int:
    """Runs what was asked for; returns the exit code."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a case is ended too
    try:
        request = _request(given)
        records = _earlier(request)
    except (OSError, ValueError) as error:
        print(f"judging: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    environment.set_threads(given.threads)  # of the processes that the cases run in
    request = dataclasses.replace(request, done=frozenset(record["label"] for record in records))
    problems = _measure(request, records, time.monotonic() + given.seconds)
    print(_write(request, records, problems))
    return 1 if any(problem.failed for problem in problems) else 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, help="folder for the results; one that is there is continued"
    )
    parser.add_argument(
        "--pair", action="append", default=[], metavar="BASE,POST",
        help="checkpoints that spectra are taken of, again and again; the demo's by default",
    )  # fmt: skip
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--matrices", default=2000, type=int, help="of each kind of noise [%(default)s]")
    parser.add_argument("--seeds", default=100, type=int, help="of each planted effect and size [%(default)s]")
    parser.add_argument("--size", default=64, type=int, help="shorter side of a reduced matrix [%(default)s]")
    parser.add_argument("--seed", default=0, type=int, help="of all that is random [%(default)s]")
    parser.add_argument("--seconds", default=math.inf, type=float, help="after which no case is begun")
    parser.add_argument("--limit", default=300.0, type=float, help="seconds a case may take [%(default)s]")
    parser.add_argument("--threads", default=2, type=int, help="cores [%(default)s]")
    return parser


def _request(given):
    from benchmarks.judging.spectra import MaterialError, demo_pair

    pairs = [tuple(pair.split(",")) for pair in given.pair] or [pair for pair in [demo_pair()] if pair]
    if not pairs:
        raise MaterialError("There are no weights: make demo installs some, or name a pair by --pair=BASE,POST.")
    if wrong := [pair for pair in given.pair if pair.count(",") != 1]:
        raise ValueError(f"--pair takes BASE,POST. Got {wrong[0]!r}.")
    parts = tuple(part.strip() for part in given.parts.split(",") if part.strip())
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"Unknown part {unknown[0]!r}. Expected some of {','.join(PARTS)}.")
    given.out.mkdir(parents=True, exist_ok=True)
    numbers = {name: getattr(given, name) for name in ("matrices", "seeds", "size", "seed", "limit")}
    return Request(given.out, tuple(pairs), parts, **numbers)


def _earlier(request):
    """The records that are there, of the same key; a folder with others is refused."""
    lines = _lines(request)
    if not lines.is_file():
        lines.write_text(json.dumps({"key": request.key()}) + "\n", encoding="utf-8")
        return []
    first, *rest = lines.read_text(encoding="utf-8").splitlines()
    if json.loads(first).get("key") != request.key():
        raise ValueError(f"{request.out} has results of other weights, flags or code. Name another --out.")
    records = []
    for line in rest:
        with contextlib.suppress(ValueError):  # the last one may have been cut off
            records.append(json.loads(line))
    kept = [first, *(json.dumps(record) for record in records)]
    lines.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return records


def _measure(request, records, deadline):
    began, gathered, written = time.monotonic(), steps.Gathered([], []), 0

    def show(line):
        nonlocal written
        print(f"[{time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)
        with _lines(request).open("a", encoding="utf-8") as file:
            for record in gathered.records[written:]:
                file.write(json.dumps(record) + "\n")
        written = len(gathered.records)

    for part in request.parts:
        steps.run_module(part, _MODULES[part], request, gathered, deadline=deadline, show=show)
    records += gathered.records
    return gathered.problems


def _write(request, records, problems):
    from benchmarks.judging.page import page

    content = {"key": request.key(), "records": records, "problems": [problem._asdict() for problem in problems]}
    (request.out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = page(records, problems)
    if planted := [record for record in records if record["part"] == "power"]:
        from benchmarks.judging.picture import power_picture

        (request.out / "power.png").write_bytes(power_picture(planted))
    (request.out / "results.md").write_text(text, encoding="utf-8")
    return text


def _lines(request):
    return request.out / "results.jsonl"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
