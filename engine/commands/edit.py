"""Usage: polarax edit --base=BASE --post=POST --kind=KIND --out=DIR.

Changes the weights of a checkpoint along the axes in which it differs from its base, and writes a whole checkpoint in
the post's layout that other tools load: every tensor that is not edited keeps its bytes, and configuration and
tokenizer are copied. Prints what the edit did to drift, alpha and nf beside what was asked. Several strengths
(--strength=0,0.5,1) write a folder each and decompose once. The same command again resumes an interrupted edit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags

from polarax.commands.comparison_flags import print_wrapped
from polarax.editing import KINDS, SIDED, EditSettings
from polarax.editing.checkpoints import check_edit, run_edit
from polarax.errors import UsageError
from polarax.loaders import parse_role_map
from polarax.planning.devices import enable_compilation_cache
from polarax.planning.options import Options
from polarax.planning.selection import Selection

_SHARED = ("include", "exclude", "roles", "layers", "method", "role_map", "memory_gib", "seed")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    kinds = ", ".join((*KINDS, *(f"{name} with --side" for name in SIDED)))
    flags.DEFINE_string("base", None, "Checkpoint before training: file, folder or URL.", flag_values=values)
    flags.DEFINE_string("post", None, "Checkpoint after training, whose layout is written.", flag_values=values)
    flags.DEFINE_string("model", None, "The only checkpoint, of an edit that needs one alone.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder for the edited checkpoint: new or empty.", flag_values=values)
    flags.DEFINE_string("kind", None, f"Which edit: {kinds}.", flag_values=values)
    flags.DEFINE_string("side", None, "left or right.", flag_values=values)
    flags.DEFINE_string(
        "strength", "1", "How much of the edit, such as 0,0.5,1: several write a folder each.", flag_values=values
    )
    flags.DEFINE_string("factor", None, "Of scale-values: a number, or by role as in q=1.1,k=0.9.", flag_values=values)
    flags.DEFINE_string(
        "signs", "aligned", "Of break: aligned, or random to see what signs that are not do.", flag_values=values
    )
    flags.DEFINE_float(
        "sd", None, "Of random-control: standard deviation of each entry; the pair's by default.", flag_values=values
    )
    flags.DEFINE_string(
        "store_dtype", None, "Type that edited tensors are stored in; their own by default.", flag_values=values
    )
    flags.DEFINE_boolean("measure", True, "Measure what the edit does to alpha and nf.", flag_values=values)
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/polarax", "Folder that keeps compiled programs; '' for none.", flag_values=values
    )
    fields = {field.name: field for field in dataclasses.fields(Options)}
    kinds_of_flag: dict[type, Callable[..., Any]] = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        tuple: flags.DEFINE_multi_string,
    }
    for name in _SHARED:
        default, text = fields[name].default, fields[name].metadata["help"]
        define = kinds_of_flag.get(type(default), flags.DEFINE_string)
        help_text = (text() if callable(text) else text).replace("to compare", "to edit")
        define(name, list(default) if isinstance(default, tuple) else default, help_text, flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Edits; returns the exit code."""
    if not values.kind:
        raise UsageError(f"--kind is missing: one of {', '.join((*KINDS, *SIDED))}.")
    if not values.out:
        raise UsageError("--out is missing: the folder for the edited checkpoint.")
    if values.model and (values.post or values.base):
        raise UsageError("--model stands alone, without --base and --post.")
    post = values.model or values.post
    if not post:
        raise UsageError("--post is missing: the checkpoint to edit.")
    if values.compilation_cache:
        enable_compilation_cache(values.compilation_cache)
    settings = EditSettings.parse(
        values.kind,
        side=values.side,
        strength=values.strength,
        factor=values.factor,
        signs=values.signs,
        sd=values.sd,
        seed=values.seed,
        store_dtype=values.store_dtype,
        measure=values.measure,
        method=values.method,
    )
    request = check_edit(
        values.base or None,
        post,
        settings,
        Selection.parse(values.include, values.exclude, values.roles, values.layers),
        role_map=parse_role_map(values.role_map or None),
        memory_gib=values.memory_gib,
    )
    edited = run_edit(request, values.out)
    print_wrapped([f"{settings.kind.name}: {settings.kind.weight}; {settings.kind.asks}"])
    print()
    print(edited.table())
    print_wrapped(edited.notes)
    print()
    for strength, folder in edited.strengths.items():
        print(f"Checkpoint: {folder}" + (f" (strength {strength:g})" if settings.several else ""))
    return 0
