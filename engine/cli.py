"""The command line: `polarax <command> --flags`; absl flags, one-line errors.

Exit codes: 0 done, 1 a run that failed part-way, 2 bad input. `--verbosity=1` shows the traceback of an error.
"""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags

# command -> what it does; polarax.commands.<command> has define_flags(flag_values) and run(flag_values) -> exit code.
COMMANDS = {
    "compare": "compare two checkpoints, or a base and several, and write a run directory",
    "history": "compare the saved steps of a training run with its first",
    "edit": "change a checkpoint's weights along the axes that a comparison measures",
    "report": "write the page and the pictures of a run",
    "evaluate": "run a model on a text: loss, attention, agreement with a reference",
    "reproduce": "edit a post in every way, each beside a random change, and see what the model does",
    "plan": "say what compare would do, from the headers alone",
}

# Of a longer word (the name of a tensor may have thousands of characters) a message repeats the two ends.
_WORD_END = 120
_LONG_WORD = re.compile(rf"\S{{{3 * _WORD_END},}}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    code = 0
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output (head, less) has seen enough
        _drop_output()
        return code
    except OSError as error:
        _drop_output()
        return code or _fail(f"The output cannot be written: {error.strerror}.", code=1)


def _main(arguments):
    if not arguments or arguments[0] in ("--help", "-h", "help", "--helpfull"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib import metadata  # not at the top: it takes as long as all else that --help needs

        print(f"polarax {metadata.version('polarax')}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        return _fail(f"Unknown command {command!r}. Expected one of {', '.join(COMMANDS)}.")
    module = importlib.import_module(f"polarax.commands.{command}")
    values = flags.FlagValues()
    flags.DEFINE_integer("verbosity", 0, "1 shows the traceback of an error.", flag_values=values)
    module.define_flags(values)
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in rest):
        print(_command_help(module, values))
        return 0
    try:
        leftover = values([command, *rest])[1:]
        if leftover:
            raise flags.Error(f"Unexpected argument {leftover[0]!r}: options are written --name=value.")
    except flags.Error as error:
        message = _one_line(error)
        return _fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} See polarax {command} --help.")
    return _run(module, values)


def _run(module, values):
    from polarax.errors import INPUT_ERRORS, RunError

    try:
        return module.run(values)
    except BrokenPipeError:
        raise
    except (*INPUT_ERRORS, RunError) as error:
        if values.verbosity >= 1:
            _print_traceback()
        return _fail(_one_line(error), code=1 if isinstance(error, RunError) else 2)
    except KeyboardInterrupt:
        return _fail("Interrupted; finished stacks are kept.", code=130)
    except Exception as error:
        if values.verbosity >= 1:
            _print_traceback()
        hint = "" if values.verbosity >= 1 else " (--verbosity=1 shows where)"
        return _fail(f"{type(error).__name__}: {_one_line(error)}{hint}", code=1)


def _drop_output():
    """Lets the interpreter's last flush, on exit, find a place for what nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message, code=2):
    print(f"polarax: {_without_secrets(message)}", file=sys.stderr)
    return code


def _print_traceback():
    """Of the error at hand, whose causes may quote what was typed."""
    print(_without_secrets(traceback.format_exc()), end="", file=sys.stderr)


def _without_secrets(text):
    if ":/" not in text and "?" not in text:
        return text
    from polarax.loaders.stores.addresses import redact

    return redact(text)


def _one_line(error):
    text = " ".join(str(error).split())
    return _LONG_WORD.sub(lambda word: f"{word[0][:_WORD_END]}...{word[0][-_WORD_END:]}", text)


def _usage():
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: polarax <command> --flag=value ...",
            "",
            "Reads what post-training did to a model's weights.",
            "",
            *lines,
            "",
            "polarax <command> --help lists its flags; polarax --version prints the version.",
        ]
    )


def _command_help(module, values):
    lines = [module.__doc__.strip(), "", "flags:"]
    for name in sorted(values):
        flag = values[name]
        if name != flag.name or flag.help is None:  # a short alias
            continue
        default = flag.default_as_str.strip("'") if flag.default not in (None, [], "") else ""
        shown = f"--[no]{name}" if flag.boolean else f"--{name}"
        lines.append(f"  {shown} [{default}]" if default else f"  {shown}")
        lines.append(f"      {' '.join(flag.help.split())}")
    return "\n".join(lines)
