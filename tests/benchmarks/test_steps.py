"""Cases that hang, crash or fail are reported, and the next ones run all the same."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

SUITE = """
    import os, subprocess, sys, time
    from benchmarks.cases import Case

    def cases(options):
        return [
            Case("good", lambda: [{"case": "good", "contestant": "a"}]),
            Case("raises", raises),
            Case("hangs", hangs),
            Case("dies", lambda: os._exit(3)),
            Case("errs", lambda: [{"case": "errs", "contestant": "polarax", "error": "no"}]),
            Case("late", lambda: [{"case": "late", "contestant": "a"}]),
        ]

    def raises():
        raise ValueError("two\\nlines")

    def hangs():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(os.environ["PID_FILE"], "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
"""

SCRIPT = """
    import math, sys
    from absl import flags
    from benchmarks import options, steps

    values = flags.FlagValues()
    options.define_flags(values)
    values(["benchmarks", "--limit=3", "--peers="])
    chosen = options.from_flags(values)

    if __name__ == "__main__":
        deadline = math.inf if sys.argv[1] == "all" else 0.0
        gathered = records, problems = steps.Gathered([], [])
        steps.run_module(
            "made-up", "made_up_suite", chosen, gathered, deadline=deadline, show=lambda line: None
        )
        for record in records:
            print("record", record["suite"], record["case"])
        for problem in problems:
            print("problem", problem.case, problem.failed, problem.what)
"""


def _run(tmp_path, which):
    (tmp_path / "made_up_suite.py").write_text(textwrap.dedent(SUITE))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": paths, "PID_FILE": str(tmp_path / "pid")}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", which],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_every_case_is_run_or_reported(tmp_path):
    assert _run(tmp_path, "all") == [
        "record made-up good",
        "record made-up errs",
        "record made-up late",
        "problem raises True ValueError: two lines",
        "problem hangs True killed after 3 s (--limit)",
        "problem dies True process ended with exit code 3",
        "problem errs True polarax: no",
    ]
    # What the hanging case had started was ended with it.
    child = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_cases_without_time_are_named(tmp_path):
    lines = _run(tmp_path, "none")
    cases = ("good", "raises", "hangs", "dies", "errs", "late")
    assert lines == [f"problem {case} False left out: no time" for case in cases]
