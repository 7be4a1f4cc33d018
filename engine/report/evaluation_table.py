"""An evaluation as a table for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from polarax.report.table import align_rows

_SHOWN_LAYERS = 12  # more would not fit a terminal
_NOTHING_ADDED = "(nothing: it ends the text there)"


def evaluation_table(content: Mapping[str, Any]) -> str:
    """The table of evaluation.json by layer, headings first, for the terminal."""
    rows = rows_by_layer(content)
    if len(rows) - 1 > _SHOWN_LAYERS:
        kept = np.linspace(1, len(rows) - 1, _SHOWN_LAYERS).round().astype(int)
        return align_rows([rows[0], *(rows[row] for row in kept)], [f"{_SHOWN_LAYERS} of {len(rows) - 1} layers."])
    return align_rows(rows, [])


def rows_by_layer(content: Mapping[str, Any]) -> list[list[str]]:
    """One row for each layer: entropy of its attention over its heads, and how near its states are to the reference."""
    attention, cka = content["attention"], content["cka"]
    entropy, share = np.array(attention["entropy"]), np.array(attention["share"])
    heading = ["layer", "attention entropy", "lowest head", "highest head", "of uniform"]
    other = np.array(attention["reference_entropy"]) if "reference_entropy" in attention else None
    if other is not None and len(other) != len(entropy):
        other = None
    near = same_layers(cka) if cka else {}
    rows = [heading + ["reference"] * (other is not None) + ["CKA"] * bool(near)]
    for layer, heads in enumerate(entropy):
        row = [
            str(layer),
            f"{heads.mean():.3f}",
            f"{heads.min():.3f}",
            f"{heads.max():.3f}",
            f"{share[layer].mean():.1%}",
        ]
        if other is not None:
            row.append(f"{other[layer].mean():.3f}")
        if near:
            value = near.get(layer + 1)  # states are counted from the embedding
            row.append("-" if value is None else f"{value:.4f}")
        rows.append(row)
    return rows


def same_layers(cka: Mapping[str, Any]) -> dict[int, float]:
    """CKA of either model's states after the same layer, where the map has both; 0 is the embedding."""
    columns = {layer: column for column, layer in enumerate(cka["reference_layers"])}
    return {
        layer: cka["values"][row][columns[layer]]
        for row, layer in enumerate(cka["layers"])
        if layer in columns and cka["values"][row][columns[layer]] is not None
    }


def rows_of_texts(content: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each prompt, and by model what it adds to it; words where it adds nothing."""
    return [
        (text["prompt"], [(name, text[name] or _NOTHING_ADDED) for name in ("model", "reference") if name in text])
        for text in content["texts"]
    ]


def rows_of_numbers(content: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of the whole text, each with what it is."""
    numbers = content["numbers"]
    words = {
        "tokens": ("tokens predicted", "{:,}"),
        "windows": ("windows", "{:,}"),
        "loss": ("loss, nats a token", "{:.4f}"),
        "loss_error": ("its standard error", "{:.4f}"),
        "perplexity": ("perplexity", "{:.5g}"),
        "accuracy": ("most probable token right", "{:.1%}"),
        "reference_loss": ("loss of the reference", "{:.4f}"),
        "divergence": ("KL divergence (reference || model), nats", "{:.4g}"),
        "divergence_error": ("its standard error", "{:.2g}"),
        "agreement": ("same most probable token", "{:.1%}"),
    }
    rows = [["number", "value"]]
    for name, (text, form) in words.items():
        if numbers.get(name) is not None:
            rows.append([text, form.format(numbers[name])])
    return rows
