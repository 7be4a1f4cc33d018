"""Flags that `compare` and `plan` share: the checkpoints, the selection, the measurement."""

from typing import Any

from absl import flags

from polarax.errors import UsageError
from polarax.kernels import SVD_METHODS
from polarax.metrics import GROUPS
from polarax.planning.post_labels import one_post
from polarax.planning.request import (
    DEFAULT_CONTROL_DRAWS,
    DEFAULT_MEMORY_GIB,
    DEFAULT_SEED,
    DEFAULT_TOP_K,
    DTYPES,
    Request,
    check_request,
)
from polarax.planning.selection import Selection


def define_comparison_flags(values: flags.FlagValues) -> None:
    """Defines the shared flags."""
    flags.DEFINE_string("base", None, "Checkpoint before training: file, folder or URL.", flag_values=values)
    flags.DEFINE_multi_string(
        "post",
        [],
        "Checkpoint after training; may be repeated, then as PATH or LABEL=PATH, to compare several with one base",
        flag_values=values,
    )
    flags.DEFINE_boolean("between", True, "Compare several posts with each other too.", flag_values=values)
    define_measurement_flags(values)


def define_measurement_flags(values: flags.FlagValues) -> None:
    """Defines the flags that say which matrices are compared, and how."""
    flags.DEFINE_multi_string(
        "include",
        [],
        "Regular expression: only names in which it is found",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "exclude",
        [],
        "Regular expression: no names in which it is found",
        flag_values=values,
    )
    flags.DEFINE_string("roles", "", "Roles to compare, such as q,k,v,o; all by default.", flag_values=values)
    flags.DEFINE_string("layers", "", "Layers to compare, such as 0,3-5; all by default.", flag_values=values)
    flags.DEFINE_string(
        "metrics",
        "",
        f"Groups of metrics, from {','.join(GROUPS)}; all by default.",
        flag_values=values,
    )
    flags.DEFINE_string("dtype", "auto", f"Working precision: {' or '.join(DTYPES)}.", flag_values=values)
    flags.DEFINE_integer(
        "top_k",
        DEFAULT_TOP_K,
        "Leading singular vectors whose subspaces are compared.",
        flag_values=values,
    )
    flags.DEFINE_string("method", "auto", f"How to decompose: {', '.join(SVD_METHODS)}.", flag_values=values)
    flags.DEFINE_string("role_map", "", "JSON file with a table of names of your own.", flag_values=values)
    flags.DEFINE_boolean(
        "common_rows",
        False,
        "Compare embeddings and heads of different vocabularies on the rows that both have.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "control_draws",
        DEFAULT_CONTROL_DRAWS,
        "Random changes of each kind (isotropic, the change's spectrum in random directions, its entries shuffled) to "
        "draw for every matrix, as sampled controls.",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", DEFAULT_SEED, "What random changes are drawn from.", flag_values=values)
    flags.DEFINE_float(
        "memory_gib",
        DEFAULT_MEMORY_GIB,
        "Memory, in GiB, that a run may take on the host, over that of an idle process.",
        flag_values=values,
    )


def request_from_flags(values: flags.FlagValues, *, post_required: bool = True) -> Request:
    """Opens the checkpoints and checks the flags; reads headers alone.

    Args:
        values: The flags.
        post_required: Whether there must be a --post; otherwise the base stands in for one that is missing.

    Raises:
        UsageError: A flag is missing or cannot be met.
        CheckpointError: A checkpoint cannot be read.
    """
    for name in ("base", "post") if post_required else ("base",):
        if values[name].value in (None, "", [], [""]):
            raise UsageError(f"--{name} is missing: the checkpoint to compare.")
    return check_request(
        values.base,
        one_post(values.post) if values.post else values.base,
        **measurement_from_flags(values),
        between=values.between,
    )


def measurement_from_flags(values: flags.FlagValues) -> dict[str, Any]:
    """The arguments of `check_request` that `define_measurement_flags` defines flags for.

    Raises:
        UsageError: The selection cannot be read.
    """
    return dict(
        selection=Selection.parse(values.include, values.exclude, values.roles, values.layers or None),
        metrics=values.metrics,
        dtype=values.dtype,
        top_k=values.top_k,
        method=values.method,
        memory_gib=values.memory_gib,
        role_map=values.role_map or None,
        common_rows=values.common_rows,
        control_draws=values.control_draws,
        seed=values.seed,
    )
