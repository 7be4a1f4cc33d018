"""The catalogue of metrics: which columns of matrices.csv there are, in which group, and what each means.

The formulas and their sources are in docs/definitions.md.
"""

from collections.abc import Iterable

from polarax.errors import UsageError
from polarax.kernels import RANDOM_CHANGES

# Columns that every run has, in front.
IDENTITY_COLUMNS = (
    "name", "layer", "role", "expert", "rows", "cols", "dtype_base", "dtype_post", "status"
)  # fmt: skip

# group -> column -> meaning. A column whose name ends in _null is the control of the column before it: what an
# isotropic random change of the same size would show; _z is the distance from it in its standard deviations.
GROUPS: dict[str, dict[str, str]] = {
    "change": {
        "drift": "size of the change, ||W_post - W_base|| / ||W_base||",
        "unchanged": "share of entries bitwise equal in both",
        "rounding_share": "expected rounding noise of the coarser stored dtype over the size of the change",
        "nf_rounding": "nf that this noise alone would give",
        "spectral_norm_rounding": "largest singular value of this noise",
    },
    "scaling": {
        "alpha": "least-squares scale of the singular values",
        "alpha_null": "control of alpha, 1 + drift^2 / 2",
        "alpha_null_std": "standard deviation of alpha under the control",
        "alpha_z": "(alpha - control) / its standard deviation",
        "alpha_geo": "geometric mean of the ratios of singular values",
        "ratio_mean": "mean of the ratios",
        "ratio_cv": "standard deviation of the ratios over their mean",
        "ratio_cv_null": "control of ratio_cv",
        "ratio_cv_energy": "ratio_cv with weights s_base^2",
        "nss": "||s_post - s_base|| / ||s_base||",
    },
    "rotation": {
        "nf": "how far the left and right rotations differ",
        "nf_null": "control of nf",
        "nf_null_std": "standard deviation of nf under the control",
        "nf_excess": "nf over its control",
        "nf_z": "(nf - control) / its standard deviation",
    },
    "budget": {
        "budget_scaling": "share of the change on the diagonal of the base's frame",
        "budget_scaling_null": "control of budget_scaling",
        "budget_coordinated": "share of the change that rotates left and right together",
        "budget_coordinated_null": "control of budget_coordinated",
        "budget_discordant": "share of the change that rotates left against right",
        "budget_discordant_null": "control of budget_discordant",
        "budget_outside": "share of the change outside the base's row or column space",
        "budget_outside_null": "control of budget_outside",
        "coordination": "(coordinated - discordant) / (coordinated + discordant); its control is 0",
        "coordination_null_std": "standard deviation of coordination under the control",
        "coordination_z": "coordination / its standard deviation under the control",
    },
    "fit": {
        "fit_error": "what one rotation of both sides and one scale leave of the post, over ||W_post||",
        "fit_error_null": "control of fit_error",
        "fit_alpha": "the scale of that fit",
        "fit_error_unchanged": "what the base itself leaves, ||W_post - W_base|| / ||W_post||",
        "fit_error_scaled": "what the best multiple of the base leaves",
    },
    "overlap": {
        "overlap_left": "overlap of the leading left subspaces, 1 for the same",
        "overlap_right": "overlap of the leading right subspaces, 1 for the same",
        "intruders_left": "leading left post vectors unlike every base vector",
        "intruders_right": "leading right post vectors unlike every base vector",
    },
    "shape": {
        "rank_base": "numerical rank of the base",
        "rank_post": "numerical rank of the post",
        "stable_rank_base": "||W||^2 / s_1^2 of the base",
        "stable_rank_post": "the same of the post",
        "stable_rank_change": "the same of the change",
        "effective_rank_base": "exp(entropy(s / sum s)) of the base",
        "effective_rank_post": "the same of the post",
        "effective_rank_change": "the same of the change",
        "spectral_norm_base": "largest singular value of the base",
        "spectral_norm_post": "the same of the post",
        "spectral_norm_change": "the same of the change",
        "power_law_base": "power-law exponent of the tail of s^2 of the base",
        "power_law_post": "the same of the post",
    },
}  # fmt: skip

# group -> metrics whose control can be sampled, by drawing random changes.
SAMPLED = {
    "scaling": ("alpha", "ratio_cv"),
    "rotation": ("nf",),
    "budget": ("budget_scaling", "budget_outside", "coordination"),
    "fit": ("fit_error",),
}

# For each of them and each kind of random change: metric_kind, metric_kind_std, metric_kind_z.
SAMPLED_SUFFIXES = {
    "": "mean over the draws",
    "_std": "population standard deviation over the draws",
    "_z": "(metric - mean) / standard deviation",
}

# Columns that every run has, at the end: they say how far the first-order controls can be trusted.
CONTROL_COLUMNS = {
    "control_reach": "condition number of the base times drift",
    "control": "'closed form'; 'out of range' where control_reach passes 1 and nf_null and ratio_cv_null are rough; "
    "'sampled' where random changes were drawn",
}

# Groups that posts are compared in with each other; a row then ends with these columns.
BETWEEN_GROUPS = ("change", "scaling", "rotation", "budget", "overlap")
BETWEEN_COLUMNS = {
    "change_cosine": "cosine of the angle between the changes of both posts from their base; its control is 0",
    "change_cosine_null_std": "standard deviation of that cosine where one of the changes has random directions",
    "change_cosine_z": "change_cosine / its standard deviation under the control",
}

# What a status starts with, and how such rows are counted.
_STATUS_KINDS = {"not finite": "not finite", "zero": "zero", "rank": "rank-deficient"}

# Beyond this product of condition number and drift the first-order closed forms fail (docs/definitions.md).
CONTROL_REACH_LIMIT = 1.0


def parse_metrics(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """The metric groups asked for, in catalogue order; all of them for None or nothing.

    Args:
        given: Group names, or one string with commas: "scaling,rotation".

    Raises:
        UsageError: A group is unknown.
    """
    words = given.split(",") if isinstance(given, str) else list(given or ())
    words = [word.strip() for word in words if word.strip()]
    for word in words:
        if word not in GROUPS:
            raise UsageError(f"Unknown metric {word!r}. Expected one of {', '.join(GROUPS)}.")
    return tuple(group for group in GROUPS if not words or group in words)


def columns(groups: Iterable[str], *, sampled: bool = False, between: bool = False) -> tuple[str, ...]:
    """Every column of matrices.csv for these groups, in order.

    Args:
        groups: Metric groups.
        sampled: Whether random changes are drawn.
        between: Whether it is two posts that are compared.
    """
    groups = tuple(groups)
    measured = [column for group in groups for column in GROUPS[group]]
    more = (*(sampled_columns(groups) if sampled else ()), *(BETWEEN_COLUMNS if between else ()))
    return (*IDENTITY_COLUMNS, *measured, *more, *CONTROL_COLUMNS)


def sampled_metrics(groups: Iterable[str]) -> tuple[str, ...]:
    """The metrics of these groups whose control can be sampled."""
    return tuple(metric for group in groups for metric in SAMPLED.get(group, ()))


def sampled_columns(groups: Iterable[str]) -> tuple[str, ...]:
    """The columns that random changes add to these groups."""
    return tuple(
        f"{metric}_{kind}{suffix}"
        for metric in sampled_metrics(groups)
        for kind in RANDOM_CHANGES
        for suffix in SAMPLED_SUFFIXES
    )


def status_kind(status: str) -> str:
    """Kind of a row's status: "ok", "unchanged", "rank-deficient", "zero" or "not finite"."""
    return next((kind for start, kind in _STATUS_KINDS.items() if status.startswith(start)), status)
