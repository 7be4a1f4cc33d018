"""What was asked for as a command line has it, so that another command can be told for the same inputs."""

import os
from collections.abc import Sequence
from typing import Any

from polarax.loaders.stores.addresses import redact_location
from polarax.planning.options import Options
from polarax.planning.post_labels import named_posts

# Options that say which rows are compared, or how much a run may take: another run of the same inputs has them too.
_KEPT = ("common_rows", "allow_partial", "top_k", "control_draws", "seed", "memory_gib")


def compare_as_typed(base: Any, post: Any, options: Options, *, between: bool) -> list[str] | None:
    """The command of a comparison, word by word, but for --out and which matrices; None of parameters in memory.

    Args:
        base: As for `polarax.compare`.
        post: As for `polarax.compare`.
        options: As for `polarax.compare`.
        between: Whether several posts are compared with each other too.
    """
    several = named_posts(post)
    posts = {"": post} if several is None else several
    if not all(map(_is_path, (base, *posts.values()))):
        return None
    flags = [f"--base={_shown(base)}"]
    flags += [f"--post={label}{'=' * bool(label)}{_shown(source)}" for label, source in posts.items()]
    flags += ["--nobetween"] if len(posts) > 1 and not between else []
    return _command("compare", flags, options)


def history_as_typed(checkpoints: Any, base: Any, options: Options) -> list[str] | None:
    """The same of a history. Arguments as for `polarax.history`."""
    if _is_path(checkpoints):
        sources = [checkpoints]
    elif isinstance(checkpoints, Sequence):
        sources = list(checkpoints)
    else:  # steps that the paths need not be named after
        return None
    if not all(map(_is_path, sources)) or not (base is None or _is_path(base)):
        return None
    flags = [f"--checkpoints={_shown(source)}" for source in sources]
    flags += [] if base is None else [f"--base={_shown(base)}"]
    return _command("history", flags, options)


def _command(name, flags, options):
    defaults = Options()
    if options.role_map is not None and not _is_path(options.role_map):
        return None
    flags += [f"--role_map={os.fsdecode(options.role_map)}"] if options.role_map else []
    for option in _KEPT:
        value = getattr(options, option)
        if value != getattr(defaults, option):
            flags.append(f"--{option}" if value is True else f"--{option}={value}")
    return ["polarax", name, *flags]


def _is_path(source):
    return isinstance(source, (str, bytes, os.PathLike))


def _shown(source):
    return redact_location(os.fsdecode(source))
