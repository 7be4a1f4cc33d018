"""The catalogue: one record for each metric, from which everything that measures, judges or shows it reads.

A record says what a metric means, what its control is, where it is shown and when it is an effect. Registered together
with the function that reads it off a pair (`register`), a metric is a column of matrices.csv, and appears wherever its
record says: tables, pictures, page, summary, reading. docs/definitions.md has the formulas and their sources.
"""

import dataclasses
import enum
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from polarax.kernels import RANDOM_CHANGES
from polarax.kernels.noise_law import Spreads

if TYPE_CHECKING:
    import pandas as pd

    from polarax.metrics.leading_pair import LeadingPair
    from polarax.metrics.matrix_pair import MatrixPair

# Standard deviations of its control that every effect is beyond: by chance 2 in 10^9 comparisons.
DEVIATIONS = 6.0

# For each metric whose control is sampled and each kind of random change: metric_kind, metric_kind_std, metric_kind_z.
# Those of `OWN_SPECTRUM` are there without draws too, from closed forms.
SAMPLED_SUFFIXES = {
    "": "mean over the draws",
    "_std": "population standard deviation over the draws",
    "_z": "(metric - mean) / standard deviation",
}
# Of `RANDOM_CHANGES`, the change's own singular values in random directions.
OWN_SPECTRUM = "spectrum"


class Shown(enum.Flag):
    """Where a metric is shown, beside being a column of matrices.csv and of a role's summary."""

    NOWHERE = 0
    ROLES = enum.auto()  # the table by role: terminal, page and notebook, of one post and of several
    FIRST_LOOK = enum.auto()  # the same table, and the page's, of a first look alone
    STEPS = enum.auto()  # the table by role and step of a history
    PAGE = enum.auto()  # the page's table of all matrices, before other columns are asked for
    FACTS = enum.auto()  # the page's pictures of a single matrix: the numbers above them
    LAYERS = enum.auto()  # the summary of a layer
    OVER_LAYERS = enum.auto()  # a picture: over the layers, with its control
    OVER_POSTS = enum.auto()  # a picture: over the layers, a line for each post
    OVER_STEPS = enum.auto()  # a picture: over the steps of a history
    OVER_PAIRS = enum.auto()  # a picture: over the layers, a line for each two posts
    HEADLINE = ROLES | STEPS | PAGE | FACTS | LAYERS | OVER_LAYERS | OVER_POSTS | OVER_STEPS


class ControlKind(enum.Enum):
    """How what a random change shows is known, in the word that tables have for it."""

    COUNTED = "counted"  # exactly, by counting degrees of freedom
    LAW = "law"  # by the law of noise, at any drift and condition number
    FIRST_ORDER = "first order"  # for changes that are small beside the smallest singular value


@dataclasses.dataclass(frozen=True)
class Control:
    """What a random change of the same size shows in place of a metric. Each text makes a column, with its meaning."""

    null: str = ""  # NAME_null: its mean; without one it is 0 by symmetry
    std: str = ""  # NAME_null_std: the standard deviation of one matrix
    excess: str = ""  # NAME_excess: the metric over its control
    z: str = ""  # NAME_z: the distance from it in its standard deviations
    kind: ControlKind = ControlKind.COUNTED
    limited: bool = False  # first order in runs that were written before there was a law
    sampled: bool = False  # can also be drawn (--control_draws)
    std_shown: bool = True  # beside the mean, in tables

    @property
    def zero(self) -> bool:
        """Whether it is 0 by symmetry, and has no column."""
        return not self.null


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of effect."""

    name: str  # in summary.json
    phrase: str  # what is said of a matrix


@dataclasses.dataclass(frozen=True)
class Chance:
    """What chance gives of a metric, one value a matrix; NaN where it cannot be said."""

    low: "pd.Series"  # its mean is at least this
    high: "pd.Series"  # and at most this
    std: "pd.Series"  # NaN throughout where no deviations are asked for
    tail: "pd.Series | float" = 1.0  # how many times as far away as of a normal number is what is as rare

    @classmethod
    def between(cls, mean: "pd.Series", other: "pd.Series", std: "pd.Series") -> "Chance":
        """That of two controls of which chance may give either; NaN in `other` where there is but one."""
        return cls(mean.where(~(other < mean), other), mean.where(~(other > mean), other), std)


@dataclasses.dataclass(frozen=True)
class Effect:
    """When a metric is so large, and so far outside its control, that a matrix is named for it."""

    threshold: str  # name of the size in summary.json
    size: float
    words: str  # how it is said at the end of the reading
    numbers: str  # the name of the value in a sentence
    format: str  # how it is written there
    origin: float = 0.0  # what is taken from it there: 1 of a factor that is told by what it changes
    above: Kind | None = None
    below: Kind | None = None
    measure: str = "difference"  # from the control: "difference", "factor" (over it, or under) or "share" (below alone)
    by_deviations: bool = True  # also asks for a distance in the control's standard deviations
    chance: "Callable[[pd.DataFrame], Chance] | None" = None  # what is judged by; else what the columns say
    where: "Callable[[pd.DataFrame], pd.Series] | None" = None  # of which rows it can be said at all
    needs: tuple[str, ...] = ()  # columns, of other metrics, without which nothing is said
    unless: tuple[str, ...] = ()  # metrics whose effects explain this one: it then says nothing of its own
    first_look: bool = False  # said of first looks alone: a full analysis has more to tell
    told: int = 0  # place among the effects; those of one place come as the catalogue has them


@dataclasses.dataclass(frozen=True)
class Metric:
    """A quantity that is measured of every matrix."""

    name: str  # of its column
    meaning: str
    control: Control | None = None
    shown: Shown = Shown.NOWHERE
    format: str = "{:.3g}"  # in tables
    heading: str = ""  # in tables; its name if not given
    title: str = ""  # of pictures; its name if not given
    picture: str = ""  # in the names of their files; its name if not given
    caption: str = ""  # below a picture over layers or posts
    steps_caption: str = ""  # below a picture over steps; the same if not given
    low: float | None = None  # where the axis of a picture begins
    stands_for: str = ""  # a metric that says the same more finely: where that is measured, this one is only a column
    of_stored_dtype: bool = False  # says nothing of what was stored quantised
    quick: bool = False  # also measured at a first look (--quick), with all columns of its control
    effect: Effect | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Column -> meaning: the metric's, then its control's."""
        control, name = self.control, self.name
        if control is None:
            return {name: self.meaning}
        texts = {"null": control.null, "null_std": control.std, "excess": control.excess, "z": control.z}
        return {name: self.meaning, **{f"{name}_{end}": text for end, text in texts.items() if text}}

    @property
    def null(self) -> str | None:
        """Column of its control's mean; None where that is 0, or there is no control."""
        return f"{self.name}_null" if self.control is not None and self.control.null else None

    @property
    def null_std(self) -> str | None:
        """Column of its control's standard deviation, if there is one."""
        return f"{self.name}_null_std" if self.control is not None and self.control.std else None

    @property
    def page_columns(self) -> tuple[str, ...]:
        """What the page's table shows of it at first: itself, its control, and its distance where that says most."""
        control = self.control
        if control is None:
            return (self.name,)
        ends = {"_null": control.null, "_excess": control.excess, "_z": control.z if control.zero else ""}
        return (self.name, *(f"{self.name}{end}" for end, there in ends.items() if there))


@dataclasses.dataclass(frozen=True)
class Group:
    """Metrics that are asked for together (--metrics); iterating gives their columns."""

    name: str
    title: str  # of its section on the page
    vectors: bool = True  # needs the singular vectors of both; else singular values are enough
    change_values: bool = False  # needs the singular values of the change
    stored: bool = False  # depends on the stored dtypes: read of each post as it is stored
    between: bool = False  # posts are compared in it with each other too
    also: tuple[str, ...] = ()  # metrics of other groups that stand here too where those are not asked for
    metrics: list[Metric] = dataclasses.field(default_factory=list)
    readers: "list[Callable[[MatrixPair], dict[str, Any]]]" = dataclasses.field(default_factory=list)
    quick_readers: "list[Callable[[LeadingPair], dict[str, Any]]]" = dataclasses.field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        """Column -> meaning of all its metrics."""
        return {column: meaning for metric in self.metrics for column, meaning in metric.columns.items()}

    @property
    def divides_rows(self) -> bool:
        """Whether its readers need no stored matrix in one piece: those that other packages register may."""
        return not self.stored or all(read.__module__.startswith("polarax.") for read in self.readers)

    @property
    def quick(self) -> bool:
        """Whether some of its metrics are measured at a first look."""
        return bool(self.quick_columns)

    @property
    def quick_columns(self) -> dict[str, str]:
        """Column -> meaning of its metrics that are measured at a first look."""
        return {name: text for metric in self.metrics if metric.quick for name, text in metric.columns.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


CHANGE = Group("change", "Size of the change", vectors=False, stored=True, between=True)
SCALING = Group("scaling", "Scaling of singular values", vectors=False, between=True)
ROTATION = Group("rotation", "Rotation of singular vectors", between=True)
BUDGET = Group("budget", "Drift budget", between=True)
POLAR = Group("polar", "Headlines by polar factors", between=True, also=("nf", "budget_outside"))
FIT = Group("fit", "The framework's fit")
OVERLAP = Group("overlap", "Leading subspaces", between=True)
LEADING = Group("leading", "The change in the leading frame", between=True)
SHAPE = Group("shape", "Shape of the spectrum", vectors=False, change_values=True)

# By name, in the order of the columns.
GROUPS = {group.name: group for group in (CHANGE, SCALING, ROTATION, BUDGET, POLAR, FIT, OVERLAP, LEADING, SHAPE)}
# What posts that are compared with each other have besides; nobody asks for it.
BETWEEN = Group("between", "Post against post", vectors=False)
# What a first look has besides; nobody asks for it, and full analyses have no use for it.
CERTIFICATE = Group("certificate", "What is known of the leading values and subspaces", vectors=False)
_BESIDE = (BETWEEN, CERTIFICATE)

_version = 0


def register(
    group: Group,
    metrics: Iterable[Metric],
    read: "Callable[[MatrixPair], dict[str, Any]] | None" = None,
    *,
    quick: "Callable[[LeadingPair], dict[str, Any]] | None" = None,
) -> None:
    """Adds metrics to the catalogue.

    Args:
        group: A new group, or one of `GROUPS`, behind whose metrics these come.
        metrics: Their records.
        read: Maps a `MatrixPair` to all columns of these metrics, each (...); and to arrays of each matrix, (..., *),
            which are kept beside the table. Traced by `jax.jit`.
        quick: Maps a `LeadingPair` to the columns of those of these metrics that are `quick`, each (). Traced too.

    Raises:
        ValueError: Metrics are quick and there is no `quick`, or the other way round; there is a column of this name,
            another group, a kind of effect of this name, or a threshold of this name and another size.
    """
    metrics = list(metrics)
    if GROUPS.get(group.name, group) is not group:
        raise ValueError(f"There is another group {group.name!r}.")
    taken = set(all_columns())
    for metric in metrics:
        if clash := taken & set(metric.columns):
            raise ValueError(f"Column {sorted(clash)[0]!r} of metric {metric.name!r} is there already.")
        if metric.effect is not None:
            _check_effect(metric.effect)
    if group is not CERTIFICATE and any(metric.quick for metric in metrics) != (quick is not None):
        raise ValueError(
            f"Metrics that are quick need a function that reads them, and no others. Group {group.name!r}."
        )
    if group not in _BESIDE:
        GROUPS[group.name] = group
    group.metrics.extend(metrics)
    if read is not None:
        group.readers.append(read)
    if quick is not None:
        group.quick_readers.append(quick)
    global _version
    _version += 1


def _check_effect(effect: Effect) -> None:
    """Raises ValueError if its kinds or its threshold would stand for two things."""
    new = {kind.name for kind in (effect.above, effect.below) if kind is not None}
    for other in (metric.effect for metric in every_metric() if metric.effect is not None):
        if taken := new & {kind.name for kind in (other.above, other.below) if kind is not None}:
            raise ValueError(f"There is another kind of effect {sorted(taken)[0]!r}.")
        if effect.threshold == other.threshold and effect.size != other.size:
            raise ValueError(f"Threshold {effect.threshold!r} is {other.size}. Got {effect.size}.")


def version() -> int:
    """Tells the catalogue from what it was before something was registered: programs are compiled for one of them."""
    return _version


def every_metric() -> Iterator[Metric]:
    """All metrics, in the order of the columns."""
    for group in (*GROUPS.values(), *_BESIDE):
        yield from group.metrics


def every_reader() -> "Iterator[Callable[[MatrixPair], dict[str, Any]]]":
    """What reads the metrics of all groups."""
    for group in (*GROUPS.values(), BETWEEN):
        yield from group.readers


def all_columns() -> dict[str, str]:
    """Column -> meaning of all metrics and their controls in closed form."""
    return {column: meaning for metric in every_metric() for column, meaning in metric.columns.items()}


def metric_of(name: str) -> Metric:
    """The record of a metric; a plain one for a column that has none, such as that of a control."""
    return next((metric for metric in every_metric() if metric.name == name), Metric(name, ""))


def shown_in(
    place: Shown, *, groups: Iterable[str] | None = None, measured: Container[str] | None = None
) -> list[Metric]:
    """The metrics that are shown in a place, in the order of the columns.

    Args:
        place: Where.
        groups: Of these alone.
        measured: Names of metrics that there are: without those that stand for one of them.
    """
    among = [*GROUPS.values(), *_BESIDE] if groups is None else [GROUPS[name] for name in groups]
    return [
        metric
        for group in among
        for metric in group.metrics
        if place in metric.shown and not (metric.stands_for and measured is not None and metric.stands_for in measured)
    ]


def effects_told() -> list[Metric]:
    """The metrics that have effects, in the order in which these are told."""
    return sorted((m for m in every_metric() if m.effect is not None), key=lambda m: m.effect.told if m.effect else 0)


def metrics_of(groups: Iterable[str], *, quick: bool = False) -> list[Metric]:
    """The metrics that are measured of these groups, each once, in the order of their columns.

    Args:
        groups: Names.
        quick: Those of a first look.
    """
    groups = tuple(groups)
    own = {metric.name for name in groups for metric in GROUPS[name].metrics}
    found: dict[str, Metric] = {}
    for name in groups:
        others = [metric_of(other) for other in GROUPS[name].also if other not in own]
        found |= {metric.name: metric for metric in (*others, *GROUPS[name].metrics) if metric.name not in found}
    return [metric for metric in found.values() if metric.quick or not quick]


def sampled_metrics(groups: Iterable[str], *, quick: bool = False) -> tuple[str, ...]:
    """The metrics of these groups whose control can be sampled; with `quick`, those of a first look."""
    return tuple(m.name for m in metrics_of(groups, quick=quick) if m.control is not None and m.control.sampled)


def own_spectrum_metrics(groups: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics that can be sampled whose control of the change's own spectrum has a closed form."""
    return tuple(name for name in sampled_metrics(groups) if name in Spreads._fields)


def sampled_columns(groups: Iterable[str], *, quick: bool = False) -> tuple[str, ...]:
    """The columns that random changes add to these groups; with `quick`, to a first look."""
    return _columns_of_changes(sampled_metrics(groups, quick=quick), RANDOM_CHANGES)


def own_spectrum_columns(groups: Iterable[str]) -> tuple[str, ...]:
    """The columns that the control of the change's own spectrum adds to these groups without draws."""
    return _columns_of_changes(own_spectrum_metrics(groups), (OWN_SPECTRUM,))


def _columns_of_changes(metrics: Iterable[str], kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{metric}_{kind}{suffix}" for metric in metrics for kind in kinds for suffix in SAMPLED_SUFFIXES)
