"""Pictures of an evaluation: attention's entropy by layer and head, and which layers have the same states."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polarax.report.plots.style import BLUE, MUTED, marker, new_figure, picture, whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTROPY_CAPTION = (
    "How many tokens a head looks at: the entropy of its attention in nats, a mean over the text. 0 is one token "
    "alone. Right: means over a layer's heads, the band from the lowest to the highest head."
)
CKA_CAPTION = (
    "Linear CKA of the states after each layer with those of the reference; 0 is the embedding. 1: the same up to "
    "rotation and scale. A bright diagonal: layers do what they did."
)


def draw_evaluation_plots(content: Mapping[str, Any]) -> "dict[str, Figure]":
    """The pictures of an evaluation.json, by name.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figures = {}
    if content["attention"]:
        figures["attention_entropy"] = plot_entropy(content["attention"])
    if content["cka"]:
        figures["cka"] = plot_cka(content["cka"])
    return figures


@picture
def plot_entropy(attention: Mapping[str, Any]) -> "Figure":
    """Entropy of attention: heads by layers, and means over heads beside the reference's."""
    entropy = np.array(attention["entropy"], float)
    figure = new_figure(7.6, 3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.2))
    # Layers along x, as in the panel beside it.
    image = left.imshow(entropy.T, aspect="auto", origin="lower", cmap="viridis", vmin=0, interpolation="nearest")
    left.set(xlabel="layer", ylabel="head", title="each head")
    whole_ticks(left)
    left.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=left, label="nats")
    layers = np.arange(len(entropy))
    right.fill_between(layers, entropy.min(axis=1), entropy.max(axis=1), color=BLUE, alpha=0.2, lw=0)
    right.plot(layers, entropy.mean(axis=1), "-", marker=marker(layers), color=BLUE, label="model")
    if "reference_entropy" in attention:
        other = np.array(attention["reference_entropy"], float).mean(axis=1)
        right.plot(np.arange(len(other)), other, "--", color=MUTED, label="reference")
        right.legend()
    right.set(xlabel="layer", ylabel="nats", title="mean over heads", ylim=(0, None))
    whole_ticks(right)
    figure.suptitle("Entropy of attention")
    return figure


@picture
def plot_cka(cka: Mapping[str, Any]) -> "Figure":
    """The map of all layers with all of the reference."""
    values = np.array(cka["values"], float)
    figure = new_figure(4.8, 4.0)
    axis = figure.subplots()
    image = axis.imshow(values, origin="lower", cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for name, layers in (("x", cka["reference_layers"]), ("y", cka["layers"])):
        places = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 7)).round().astype(int))
        getattr(axis, f"set_{name}ticks")(places, [str(layers[place]) for place in places])
    axis.set(xlabel="layer of the reference", ylabel="layer of the model")
    figure.colorbar(image, ax=axis, label="linear CKA")
    figure.suptitle("States of all layers with all")
    return figure
