"""Runs the parts one after another, each in a process that is ended at its limit; see the package's docstring.

    python -m benchmarks.gpu_day --out=DIR [--parts=pair,layer] [--seconds=465] [--smallest]

Exit codes: 0 all parts were begun, 1 none could be measured, 2 bad flags.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Eight minutes, less what starting and ending takes.
_SECONDS = 465.0
# Of all sizes in the smallest form.
_SMALLEST = 64
# A part that has less is not begun.
_LEAST_SECONDS = 15.0
# What a part has beyond the seconds that it knows of: to write its last record.
_GRACE = 5.0


def main(arguments: list[str]) -> int:
    """Runs what was asked for; returns the exit code."""
    from benchmarks.gpu_day.layout import make_importable

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the results")
    parser.add_argument("--parts", default="", help="names of parts, with commas; all by default")
    parser.add_argument("--seconds", default=_SECONDS, type=float, help="for all parts together")
    parser.add_argument("--smallest", action="store_true", help="on tiny matrices: to see that it runs")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # the part that this process is
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "results.jsonl"
    divisor = _SMALLEST if given.smallest else 1
    if given.part:
        make_importable()
        from benchmarks.gpu_day import parts

        parts.run(given.part, str(lines), divisor, given.seconds)
        return 0
    return _day(given, lines)


def _day(given, lines):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part at work is ended too
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch's share of the memory
    names = _names()
    chosen = [name.strip() for name in given.parts.split(",") if name.strip()] or list(names)
    if unknown := [name for name in chosen if name not in names]:
        print(f"gpu_day: Unknown part {unknown[0]!r}. Expected some of {'; '.join(names)}.", file=sys.stderr)
        return 2
    lines.write_text("", encoding="utf-8")
    began = time.monotonic()
    records: list[dict] = []
    for name in chosen:
        left = given.seconds - (time.monotonic() - began)
        if left < _LEAST_SECONDS:
            _add(lines, {"part": name, "case": "whole part", "error": "left out: no time"})
        else:
            seconds = min(names[name], left)
            print(f"[{time.monotonic() - began:4.0f} s] {name}: {seconds:.0f} s at most", file=sys.stderr, flush=True)
            _run(name, given, lines, seconds)
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        _write(given.out, records)  # after each part: an end from outside loses nothing
    print((given.out / "results.md").read_text(encoding="utf-8"))
    return 0 if any("error" not in record for record in records) else 1


def _names():
    """Name of each part -> its seconds, without importing jax here, which would take the device's memory."""
    code = "import json; from benchmarks.gpu_day.parts import PARTS; print(json.dumps({n: PARTS[n][1] for n in PARTS}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _run(name, given, lines, seconds):
    command = [sys.executable, "-m", "benchmarks.gpu_day", f"--out={given.out.resolve()}", f"--part={name}"]
    command += [f"--seconds={seconds - _GRACE}", *(["--smallest"] if given.smallest else [])]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
        if process.returncode:
            end = " ".join(said.split())[-300:]
            _add(lines, {"part": name, "case": "whole part", "error": f"exit code {process.returncode}: {end}"})
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        _add(lines, {"part": name, "case": "whole part", "error": f"ended after {seconds:.0f} s"})
    finally:
        if process.poll() is None:  # this process is being ended
            os.killpg(process.pid, signal.SIGKILL)


def _add(lines, record):
    text = lines.read_text(encoding="utf-8")
    kept = text[: text.rfind("\n") + 1]  # without a line that was cut off
    lines.write_text(f"{kept}{json.dumps(record)}\n", encoding="utf-8")


def _write(folder, records):
    from benchmarks.gpu_day.page import page

    (folder / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(page(records), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
