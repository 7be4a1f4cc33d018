"""Pictures of the experiments: what each change does beside a random one, and attention's entropy over temperatures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polarax.report.plots.style import (
    BLUE,
    MUTED,
    each,
    legend_below,
    new_figure,
    picture,
    plain_logarithmic_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "experiments": (
        "How far each change takes the distribution of the next token from the post's (KL divergence, nats): the "
        "change itself, and a random change of the same size. Only a distance between the two is a finding."
    ),
    "temperature": (
        "Queries and keys times c: entropy of attention in nats, a mean over heads and the text (left), and by layer "
        "(right)."
    ),
}
_LEAST = 1e-9  # nats; a divergence of zero is drawn here


def draw_reproduction_plots(content: Mapping[str, Any]) -> "dict[str, Figure]":
    """The pictures of a reproduction.json, by name.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figures = {}
    if content["experiments"]:
        figures["experiments"] = plot_experiments(content)
    if content["temperature"]["rows"]:
        figures["temperature"] = plot_temperature(content["temperature"])
    return figures


@picture
def plot_experiments(content: Mapping[str, Any]) -> "Figure":
    """KL divergence of each experiment and of its random change, one panel for each text."""
    rows, labels = content["experiments"], [text["label"] for text in content["texts"]]
    figure = new_figure(2.6 + 3.4 * len(labels), 1.2 + 0.24 * len(rows))
    axes = figure.subplots(1, len(labels), squeeze=False, sharey=True)[0].tolist()
    places = np.arange(len(rows))[::-1]
    for axis, label in each(axes, labels):
        edit, random = (
            np.maximum([row[side]["texts"][label]["divergence"] or 0.0 for row in rows], _LEAST)
            for side in ("edit", "random")
        )
        axis.hlines(places, np.minimum(edit, random), np.maximum(edit, random), color=MUTED, lw=0.6)
        # The filled marks are smaller than the rings, which stay visible where both are in one place.
        edits = axis.plot(edit, places, "o", ms=3.0, color=BLUE, label="the change")
        randoms = axis.plot(random, places, "o", ms=5.0, color=MUTED, mfc="none", label="a random change of its size")
        axis.set(xscale="log", xlabel="KL divergence from the post, nats")
        plain_logarithmic_axis(axis, "x")
        axis.set_yticks(places, [row["name"] for row in rows])
    legend_below(figure, edits + randoms)
    return figure


@picture
def plot_temperature(temperature: Mapping[str, Any]) -> "Figure":
    """Entropy of attention over the factor, as a mean and by layer."""
    rows = temperature["rows"]
    factors = [row["c"] for row in rows]
    figure = new_figure(7.6, 3.0)
    left, right = figure.subplots(1, 2)
    left.plot(factors, [row["scaled"]["entropy"] for row in rows], "-o", color=BLUE, label="weights times c")
    if not temperature["exact"]:
        other = [row["at_temperature"]["entropy"] for row in rows]
        left.plot(factors, other, "--", color=MUTED, label="softmax at temperature 1/c^2")
        left.legend()
    left.set(xlabel="c", ylabel="nats", title="mean over heads", ylim=(0, None))
    layers = np.array([row["scaled"]["entropy_by_layer"] for row in rows], float)
    image = right.imshow(layers, aspect="auto", origin="lower", cmap="viridis", vmin=0, interpolation="nearest")
    right.set(xlabel="layer", ylabel="c", title="by layer")
    right.set_yticks(range(len(factors)), [f"{c:g}" for c in factors])
    figure.colorbar(image, ax=right, label="nats")
    figure.suptitle("Entropy of attention")
    return figure
