"""Importing polarax costs next to nothing; its names are there all the same, whatever was imported before them."""

import json
import subprocess
import sys

import pytest

import polarax

HEAVY = ("jax", "numpy", "pandas", "scipy", "tensorstore", "matplotlib")


def _in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, json\n{code}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import polarax",
        "from polarax.cli import main; main(['--help'])",
        "from polarax.cli import main; main(['--version'])",
    ],
)
def test_nothing_heavy_is_imported(code):
    assert _in_a_new_process(f"{code}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))") == []


def test_every_public_name_is_there_and_listed():
    code = (
        "import polarax\nlisted = dir(polarax)\n"
        "missing = [name for name in polarax.__all__ if name not in listed or getattr(polarax, name) is None]\n"
        "print(json.dumps(missing))"
    )
    assert _in_a_new_process(code) == []


@pytest.mark.parametrize("name", ["compare", "history", "monitor", "open_checkpoint"])
def test_a_function_is_never_hidden_by_a_module(name):
    code = (
        "import importlib, polarax.cli\n"
        "for command in polarax.cli.COMMANDS: importlib.import_module(f'polarax.commands.{command}')\n"
        f"import types, polarax; print(json.dumps(isinstance(polarax.{name}, types.FunctionType)))"
    )
    assert _in_a_new_process(code) is True


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        polarax.nothing  # noqa: B018
