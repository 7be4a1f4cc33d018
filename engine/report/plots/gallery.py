"""Which pictures are drawn of a run, of several posts and of a history, in which order, and what is said below each.

A metric that the catalogue shows over layers, posts, pairs or steps has its picture here by that alone.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from polarax.metrics import GROUPS, Metric, Shown, metric_of, shown_in
from polarax.metrics.look import LOOK
from polarax.report.plots.budget import plot_drift_budget
from polarax.report.plots.over_layers import plot_over_layers
from polarax.report.plots.over_posts import plot_budgets, plot_lines
from polarax.report.plots.over_steps import (
    plot_budget_over_steps,
    plot_layers_over_steps,
    plot_over_steps,
    plot_overlap_over_steps,
)
from polarax.report.plots.rotation import plot_overlap, plot_principal_angles, plot_rotation
from polarax.report.plots.scaling import plot_scaling
from polarax.report.plots.style import to_png, to_svg
from polarax.results.files import replacing, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run, Runs

_BUDGET = "split into orthogonal parts in the base's own frame"
_PARTS_END = "where the parts of a random change would end"


class Picture(NamedTuple):
    """One picture."""

    name: str  # of its files
    draw: "Callable[[Any], Figure | None]"  # of what it shows; None where that has nothing for it
    caption: str


def captioned(captions: Mapping[str, str]) -> list[Picture]:
    """Pictures that are drawn elsewhere, by name, with what is said below each."""
    return [Picture(name, lambda _: None, caption) for name, caption in captions.items()]


class Part(NamedTuple):
    """Pictures that belong together: a section of a run's page."""

    id: str
    title: str
    link: str
    groups: tuple[str, ...]  # of metrics, whose pictures these are too
    before: tuple[Picture, ...] = ()  # those of the metrics
    after: tuple[Picture, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        metrics = shown_in(Shown.OVER_LAYERS, groups=self.groups)
        return [*self.before, *map(_over_layers, metrics), *self.after]


def _at_first_look(run, metric):
    """A metric that a full analysis has more to say of; None of a run that is one."""
    if LOOK not in run.frame():
        return None
    record = metric_of(metric)
    return plot_over_layers(run, metric, _sentence(record.title or record.heading or metric))


_PARTS = (
    Part(
        "scaling-section",
        "Scaling of singular values",
        "Scaling",
        ("scaling",),
        before=(
            Picture(
                "scaling",
                plot_scaling,
                "Ratios post / base of singular values of the same rank, a line for each matrix, or for each layer the "
                "mean of its experts where there are many. Below each map, in the same colours: what isotropic noise "
                "of the same size gives in its place, in the mean (the middle line) and one standard deviation above "
                "and below it, medians over the lines. Noise lifts small singular values. Colours that it has too are "
                "no finding.",
            ),
        ),
    ),
    Part(
        "first-look-section",
        "The change at a first look",
        "The change",
        (),
        before=(
            Picture(
                "leading_coordination",
                functools.partial(_at_first_look, metric="leading_coordination"),
                "(coordinated - discordant) / (coordinated + discordant) of the change between the leading singular "
                "vectors: 0 for a random change, 1 for a joint rotation of them.",
            ),
            Picture(
                "leading_scaling",
                functools.partial(_at_first_look, metric="leading_scaling"),
                "Share of the change that scales leading singular values. Of a random change next to none does.",
            ),
            Picture(
                "stable_rank_change",
                functools.partial(_at_first_look, metric="stable_rank_change"),
                "Over how many directions the change is spread: ||D||² over the square of its largest singular value. "
                "Changes of training are far below the control, which is no news; 1 is a single direction.",
            ),
        ),
    ),
    Part(
        "rotation-section",
        "Rotation of singular vectors",
        "Rotation",
        ("rotation", "overlap"),
        after=(
            Picture(
                "rotation",
                plot_rotation,
                "What was lost of the leading subspaces, nf, and nf over its control; medians where a layer has "
                "several matrices of a role. Logarithmic colours.",
            ),
            Picture(
                "overlap",
                plot_overlap,
                "1 - overlap of the leading left and right subspaces, 0 for the same subspace. Dotted: what a random "
                "change of this size loses of them, to first order.",
            ),
            Picture(
                "principal_angles",
                plot_principal_angles,
                "Principal angles between the leading subspaces of base and post, smallest first, left vectors beside "
                "right ones; means over experts. Logarithmic colours.",
            ),
        ),
    ),
    Part(
        "budget-section",
        "Drift budget",
        "Drift budget",
        ("budget",),
        before=(
            Picture(
                "drift_budget",
                plot_drift_budget,
                f"The change {_BUDGET}: singular values changed (scaling), left and right vectors turned together "
                "(coordinated) or against each other (discordant), and what leaves the base's row or column space "
                f"(outside). Lines: {_PARTS_END}. Means over experts.",
            ),
        ),
    ),
)


def run_gallery() -> list[Part]:
    """The pictures of a run, drawn from a `Run`: groups of metrics that no part is made for have one of their own."""
    arranged = {group for part in _PARTS for group in part.groups}
    others = [
        Part(f"{name}-section", group.title, group.title, (name,))
        for name, group in GROUPS.items()
        if name not in arranged and shown_in(Shown.OVER_LAYERS, groups=[name])
    ]
    return [*_PARTS, *others]


def posts_gallery() -> list[Picture]:
    """The pictures of several posts, drawn from label -> `Run.frame()`."""
    budget = Picture("posts_budget", plot_budgets, f"Each change {_BUDGET}; lines: {_PARTS_END}.")
    return [*(_over_posts(metric) for metric in shown_in(Shown.OVER_POSTS)), budget]


def pairs_gallery() -> list[Picture]:
    """The pictures of posts against each other, drawn from label -> `Run.frame()`: what they share comes first."""
    return [_over_pairs(metric) for metric in sorted(shown_in(Shown.OVER_PAIRS), key=lambda one: bool(one.null))]


def steps_gallery() -> list[Picture]:
    """The pictures of a history, drawn from `History.frame()`."""
    pictures = []
    for metric in shown_in(Shown.OVER_STEPS):
        pictures += _over_steps(metric)
    budget = Picture("history_budget", plot_budget_over_steps, f"The change {_BUDGET}; lines: {_PARTS_END}.")
    overlap = Picture(
        "history_overlap",
        plot_overlap_over_steps,
        "1 - overlap of the leading left and right subspaces with the base's. These have no control.",
    )
    return [*pictures, budget, overlap]


def draw_plots(run: "Run") -> "dict[str, Figure]":
    """Every picture that the run has the numbers for, by name.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return _drawn((picture for part in run_gallery() for picture in part.pictures), run)


def draw_posts_plots(runs: "Runs") -> "dict[str, Figure]":
    """Every picture that several posts have the numbers for, by name. Errors as for `draw_plots`."""
    posts = {label: run.frame() for label, run in runs.items()}
    pairs = {" to ".join(pair): runs.between(*pair).frame() for pair in runs.pairs}
    return _drawn(posts_gallery(), posts) | _drawn(pairs_gallery(), pairs)


def draw_history_plots(frame: Any) -> "dict[str, Figure]":
    """Every picture that the steps have the numbers for, by name. Errors as for `draw_plots`.

    Args:
        frame: `History.frame()`.
    """
    return _drawn(steps_gallery(), frame)


def write_plots(figures: "Mapping[str, Figure]", folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes pictures as PNG, for slides and notes, and as SVG, for papers.

    Args:
        figures: What one of the functions above returned.
        folder: Where to; it is made, unless there are none.

    Returns:
        The paths of the PNGs; the SVGs lie beside them.

    Raises:
        RunError: The folder cannot be written.
    """
    written: list[pathlib.Path] = []
    if not figures:
        return written
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            contents = {".png": to_png(figure), ".svg": to_svg(figure, name).encode()}
            for ending, content in contents.items():
                with replacing(folder / f"{name}{ending}", mode="wb") as file:
                    file.write(content)
            written.append(folder / f"{name}.png")
    return written


def _drawn(pictures: Iterable[Picture], shown: Any) -> "dict[str, Figure]":
    figures = {picture.name: picture.draw(shown) for picture in pictures}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _over_layers(metric: Metric) -> Picture:
    draw = functools.partial(plot_over_layers, metric=metric.name, title=_title(metric))
    return Picture(_name(metric), draw, _caption(metric))


def _over_posts(metric: Metric) -> Picture:
    draw = functools.partial(plot_lines, metric=metric.name, title=_title(metric))
    return Picture(f"posts_{_name(metric)}", draw, _caption(metric))


def _over_pairs(metric: Metric) -> Picture:
    if metric.null is None:  # of pairs alone
        title, caption = _title(metric), _caption(metric)
    else:
        title = f"{metric.name} from one post to another"
        caption = (
            f"{_sentence(metric.meaning)}, from one post to the other, beside the control of a random change of the "
            "size of their difference."
        )
    draw = functools.partial(plot_lines, metric=metric.name, title=title)
    return Picture(f"between_{_name(metric)}", draw, caption)


def _over_steps(metric: Metric) -> list[Picture]:
    over = functools.partial(plot_over_steps, metric=metric.name, title=_title(metric))
    pictures = [Picture(f"history_{_name(metric)}", over, metric.steps_caption or _caption(metric))]
    if metric.control is not None:
        layers = functools.partial(plot_layers_over_steps, metric=metric.name, ratio=bool(metric.control.excess))
        said = "0: as in any change of this size." if metric.control.excess else "Of each layer, at each step."
        pictures.append(Picture(f"history_{_name(metric)}_layers", layers, said))
    return pictures


def _name(metric):
    return metric.picture or metric.name


def _title(metric):
    return metric.title or metric.name


def _caption(metric):
    return metric.caption or f"{_sentence(metric.meaning)}."


def _sentence(text):
    return text[:1].upper() + text[1:]
