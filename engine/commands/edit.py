"""Usage: polarax edit --base=BASE --post=POST --kind=KIND --out=DIR.

Changes the weights of a checkpoint along the axes in which it differs from its base, and writes a whole checkpoint in
the post's layout that other tools load: every tensor that is not edited keeps its bytes, and configuration and
tokenizer are copied. Prints what the edit did to drift, alpha and nf beside what was asked. Several strengths
(--strength=0,0.5,1) write a folder each and decompose once. The same command again resumes an interrupted edit.
"""

from absl import flags

from polarax.commands.comparison_flags import define_option_flags, print_wrapped
from polarax.commands.shared_flags import (
    define_cache_flag,
    define_host_flags,
    enable_cache,
    joined_from_flags,
    require,
)
from polarax.editing import KINDS, SIDED, EditSettings
from polarax.editing.checkpoints import check_edit, partial_folder, run_edit
from polarax.errors import UsageError
from polarax.loaders import parse_role_map
from polarax.planning.selection import Selection

_SHARED = ("include", "exclude", "roles", "layers", "method", "role_map", "keep_base", "memory_gib", "seed")


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
    flags.DEFINE_boolean(
        "measure", True, "Measure alpha and nf, of the weight before it is rounded.", flag_values=values
    )
    define_host_flags(values)
    define_cache_flag(values)
    define_option_flags(values, only=_SHARED, verb="edit")


def run(values: flags.FlagValues) -> int:
    """Edits; returns the exit code."""
    require(values, kind=f"one of {', '.join((*KINDS, *SIDED))}", out="the folder for the edited checkpoint")
    if values.model and (values.post or values.base):
        raise UsageError("--model stands alone, without --base and --post.")
    post = values.model or values.post
    if not post:
        raise UsageError("--post is missing: the checkpoint to edit.")
    enable_cache(values)
    with joined_from_flags(values, folder=partial_folder(values.out)):
        return _run(values, post)


def _run(values: flags.FlagValues, post: str) -> int:
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
        keep_base=values.keep_base or None,
    )
    edited = run_edit(request, values.out)
    if edited is None:
        return 0  # the first process says it
    print_wrapped([f"{settings.kind.name}: {settings.kind.weight}; {settings.kind.asks}"])
    print()
    print(edited.table())
    print_wrapped(edited.notes)
    print()
    for strength, folder in edited.strengths.items():
        print(f"Checkpoint: {folder}" + (f" (strength {strength:g})" if settings.several else ""))
    return 0
