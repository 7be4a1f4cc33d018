"""What is measured of a pair of matrices: a catalogue of metrics, one module for each group.

A metric is a record (`Metric`) and a function that reads it (`register`); everything that computes, judges or shows
metrics reads the catalogue. docs/definitions.md has the formulas and their sources.
"""

from collections.abc import Iterable

from polarax.errors import UsageError
from polarax.metrics import (  # noqa: F401  they register what they read
    budget,
    certificate,
    change,
    common_direction,
    fit,
    leading,
    overlap,
    polar_factors,
    rotation,
    scaling,
    shape,
)
from polarax.metrics.catalogue import (
    BETWEEN,
    CERTIFICATE,
    GROUPS,
    OWN_SPECTRUM,
    SAMPLED_SUFFIXES,
    Chance,
    Control,
    ControlKind,
    Effect,
    Group,
    Kind,
    Metric,
    Shown,
    effects_told,
    every_metric,
    metric_of,
    metrics_of,
    own_spectrum_columns,
    own_spectrum_metrics,
    register,
    sampled_columns,
    sampled_metrics,
    shown_in,
)
from polarax.metrics.leading_pair import LeadingPair, LeadingPart
from polarax.metrics.matrix_pair import MatrixPair, Readings, Spectra, StoredEntries, ratio_to

__all__ = [
    "BETWEEN",
    "CERTIFICATE",
    "CERTIFICATE_COLUMNS",
    "CONTROL_COLUMNS",
    "GROUPS",
    "IDENTITY_COLUMNS",
    "OWN_SPECTRUM",
    "SAMPLED_SUFFIXES",
    "TEXT_COLUMNS",
    "Chance",
    "Control",
    "ControlKind",
    "Effect",
    "Group",
    "Kind",
    "LeadingPair",
    "LeadingPart",
    "MatrixPair",
    "Metric",
    "Readings",
    "Shown",
    "Spectra",
    "StoredEntries",
    "between_groups",
    "columns",
    "effects_told",
    "every_metric",
    "metric_of",
    "metrics_of",
    "own_spectrum_columns",
    "own_spectrum_metrics",
    "parse_metrics",
    "quick_groups",
    "ratio_to",
    "register",
    "sampled_columns",
    "sampled_metrics",
    "shown_in",
]

# Columns that every run has, in front.
IDENTITY_COLUMNS = (
    "name", "layer", "role", "expert", "rows", "cols", "dtype_base", "dtype_post", "status", "relation", "name_post",
    "matched_by",
)  # fmt: skip

# Columns that every run has, at the end: how far first order would reach, and what a row is judged by.
CONTROL_COLUMNS = {
    "control_reach": "condition number of the base times drift",
    "control": "'law'; 'draws' where random changes were drawn",
}

# Columns of a run in which polar factors were iterated for: how good these are.
CERTIFICATE_COLUMNS = {
    "polar_residual": "||P^T P - I|| / sqrt(r) of the worse of the two polar factors",
    "polar_steps": "steps that were iterated for them; 0 where a matrix needed its SVD instead",
}

# Of all these, those that hold words.
TEXT_COLUMNS = frozenset(
    {
        "name",
        "role",
        "dtype_base",
        "dtype_post",
        "status",
        "relation",
        "name_post",
        "matched_by",
        "look",
        "converged",
        "control",
    }
)


def quick_groups() -> tuple[str, ...]:
    """The metric groups that a first look measures something of, in catalogue order."""
    return tuple(name for name, group in GROUPS.items() if group.quick)


def parse_metrics(given: str | Iterable[str] | None, *, quick: bool = False) -> tuple[str, ...]:
    """The metric groups asked for, in catalogue order; all that there are for None or nothing.

    Args:
        given: Group names, or one string with commas: "scaling,rotation".
        quick: Whether they are asked of a first look.

    Raises:
        UsageError: A group is unknown, or needs more than a first look.
    """
    words = given.split(",") if isinstance(given, str) else list(given or ())
    words = [word.strip() for word in words if word.strip()]
    possible = quick_groups() if quick else tuple(GROUPS)
    for word in words:
        if word not in GROUPS:
            raise UsageError(f"Unknown metric {word!r}. Expected one of {', '.join(possible)}.")
        if word not in possible:
            raise UsageError(
                f"--metrics={word} needs whole decompositions, which --quick does without. "
                f"With --quick there are {', '.join(possible)}."
            )
    return tuple(group for group in possible if not words or group in words)


def columns(
    groups: Iterable[str],
    *,
    sampled: bool = False,
    own_spectrum: bool = False,
    between: bool = False,
    by_products: bool = False,
    quick: bool = False,
) -> tuple[str, ...]:
    """Every column of matrices.csv for these groups, in order.

    Args:
        groups: Metric groups.
        sampled: Whether random changes are drawn.
        own_spectrum: Whether the singular values of the change are known, for the control that has these.
        between: Whether it is two posts that are compared.
        by_products: Whether polar factors are iterated for.
        quick: Whether it is a first look: of the groups what that measures, and its certificate.
    """
    groups = tuple(groups)
    measured = [column for metric in metrics_of(groups, quick=quick) for column in metric.columns]
    more = (
        *(CERTIFICATE_COLUMNS if by_products else ()),
        *(sampled_columns(groups, quick=quick) if sampled else ()),
        *(own_spectrum_columns(groups) if own_spectrum and not sampled else ()),
        *(BETWEEN if between else ()),
        *(CERTIFICATE if quick else ()),
    )
    return (*IDENTITY_COLUMNS, *measured, *more, *CONTROL_COLUMNS)


def between_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """Those of the groups in which posts are compared with each other."""
    return tuple(group for group in groups if GROUPS[group].between)
