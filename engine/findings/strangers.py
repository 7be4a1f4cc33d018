"""What is said of posts that are not the base, trained: moved layers, permuted and turned matrices, unrelated ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from polarax.findings.words import at_start, by_role, possessive
from polarax.metrics.relation import Relation, has_relation
from polarax.metrics.tables import column

_NAMED = 3  # matrices of one relation that are named one by one; more are counted by role
NO_LAYERS: Mapping[str, Any] = {"moved": [], "missing": []}


def summarise_strangers(frame: pd.DataFrame, layers: Mapping[str, Any] = NO_LAYERS) -> dict:
    """JSON-ready: relations (relation -> role -> how many matrices), and the layers that moved and that are missing."""
    rows = frame[has_relation(frame)]
    by_relation = {} if rows.empty else dict(tuple(rows.groupby("relation", sort=False)))
    return {
        "relations": {relation: some["role"].value_counts().to_dict() for relation, some in by_relation.items()},
        "layers": list(layers["moved"]),
        "missing": list(layers["missing"]),
    }


def read_strangers(frame: pd.DataFrame, layers: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on moved layers, then on every other relation.

    Args:
        frame: `Run.frame()`.
        layers: `Run.moved_layers()`.
    """
    yield from _layers(layers)
    told = {(layer["post"], f"layer {layer['base']} of the base") for layer in layers["moved"]}
    rows = frame[has_relation(frame)]
    if rows.empty:
        return
    rows = rows[[place not in told for place in zip(rows["layer"], rows["relation"], strict=True)]]
    for relation in sorted(set(rows["relation"]), key=_in_order):
        of_kind = rows[rows["relation"] == relation]
        drift = column(of_kind, "drift")
        if len(of_kind) <= _NAMED:
            for (_, row), size in zip(of_kind.iterrows(), drift, strict=True):
                label = possessive(row)
                yield f"{at_start(label)}: {relation} (drift {size:.3g})."
        else:
            roles = by_role(of_kind, frame)
            yield f"{roles}: {relation}, in {len(of_kind)} matrices (drift {drift.median():.3g} in the median)."


def _layers(layers):
    for post, base, drift in _runs(layers["moved"]):
        are = "is" if len(post) == 1 else "are"
        trained = f", trained (drift up to {drift:.2g})" if drift else ""
        yield f"{_numbers(post, 'Layer')} of the post {are} {_numbers(base, 'layer')} of the base{trained}."
    for missing in _consecutive(layers["missing"]):
        yield f"{_numbers(missing, 'Layer')} of the base {'is' if len(missing) == 1 else 'are'} not in the post."


def _runs(moved: Sequence[Mapping]) -> Iterator[tuple[list[int], list[int], float]]:
    """Layers of the post and of the base that follow one another in both, and the largest drift of them."""
    post: list[int] = []
    base: list[int] = []
    drift = 0.0
    for layer in moved:
        if post and (layer["post"], layer["base"]) != (post[-1] + 1, base[-1] + 1):
            yield post, base, drift
            post, base, drift = [], [], 0.0
        post.append(layer["post"])
        base.append(layer["base"])
        drift = max(drift, layer["drift"])
    if post:
        yield post, base, drift


def _consecutive(numbers: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _numbers(layers, word):
    return f"{word} {layers[0]}" if len(layers) == 1 else f"{word}s {layers[0]} to {layers[-1]}"


def _in_order(relation):
    known = [one.value for one in Relation]
    return (known.index(relation) if relation in known else 0), relation
