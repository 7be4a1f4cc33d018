"""Model level: the distribution of every metric over a role and a layer, the output projections, the reading."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from polarax.findings.answers import moved
from polarax.findings.effects import mostly_rounding, thresholds, without_control, z_limit_of_draws
from polarax.findings.first_look import count_first_looks
from polarax.findings.mechanical import tell_apart
from polarax.findings.reading import read_frame
from polarax.findings.signature import output_signature
from polarax.findings.strangers import NO_LAYERS, summarise_strangers
from polarax.loaders import ROLES
from polarax.metrics import CONTROL_COLUMNS, IDENTITY_COLUMNS, TEXT_COLUMNS, Shown, shown_in
from polarax.metrics.look import LOOK
from polarax.metrics.relation import has_relation
from polarax.metrics.status import JudgedBy, status_labels


def summarise(
    frame: pd.DataFrame,
    skipped: pd.DataFrame,
    draws: int = 0,
    layers: Mapping[str, Any] = NO_LAYERS,
    coverage: Mapping[str, Any] | None = None,
    top_k: int = 0,
) -> dict:
    """Summary of a run, JSON-ready up to NaN.

    Args:
        frame: `Run.frame()`.
        skipped: `Run.skipped()`.
        draws: How many draws the sampled controls are made of, if the frame has any.
        layers: `Run.moved_layers()`.
        coverage: How much of either model was compared, as run.json has it; None of a run that was written without.
        top_k: Leading singular values that a first look was asked for.

    Returns:
        matrices: how many; first_look: of a run that began as one, how many of them were not analysed in full, and how
        many of these did not converge; status: how many of each; controls: how many are judged by which; skipped: how
        many for each reason; coverage: as given; roles: role -> metric -> count, mean, std (population), min, median,
        max of those finite among its matrices, with `matrices`, `out_of_range` (how many of them have a closed-form
        control that is only rough), `rounding` (how many changed by little more than storage rounding) and `named` (how
        many have an effect that stands out and is not explained, or are not the base, trained); layers: layer -> the
        same of the headline metrics; flagged: counts of rows that are mostly rounding, and of those whose nf has no
        control that holds; strangers: `summarise_strangers`; effects: kind -> role -> how many matrices, without those
        that are explained; explained: by which known mechanical effects, with their sentences; signature: `Signature`
        as a dict, or None; moved: the drift of the matrices; answers: the first questions of the reading, with what is
        said to each; reading: sentences; thresholds: what they rest on.
    """
    present = set(frame["role"])
    found = tell_apart(frame, draws)
    effects = found.effects
    outstanding = frame.index.isin(effects["row"]) | has_relation(frame).to_numpy()
    signature = output_signature(frame, draws)
    reading = read_frame(frame, draws, layers, coverage, top_k, found)
    limit = {"z_sampled": z_limit_of_draws(draws)} if draws else {}
    return {
        "matrices": len(frame),
        **({"first_look": count_first_looks(frame)} if LOOK in frame else {}),
        "status": dict(Counter(status_labels(frame))),
        "controls": dict(Counter(frame["control"])),
        "skipped": dict(Counter(re.sub(r"\(.*", "", reason).strip() for reason in skipped["reason"])),
        "coverage": coverage,
        "roles": {
            role: _describe_role(frame[frame["role"] == role], outstanding[frame["role"] == role])
            for role in ROLES
            if role in present
        },
        "layers": {
            str(layer): {"matrices": len(rows), **_describe(rows, [c for c in _layer_columns() if c in rows])}
            for layer, rows in frame.groupby("layer")
        },
        "flagged": {"rounding": int(mostly_rounding(frame).sum()), "nf_unjudged": int(without_control(frame).sum())},
        "strangers": summarise_strangers(frame, layers),
        "effects": {
            kind: dict(Counter(frame.loc[rows["row"], "role"])) for kind, rows in effects.groupby("kind", sort=False)
        },
        "explained": [
            {"by": one.name, "roles": dict(Counter(frame.loc[list(one.rows), "role"])), "sentence": one.sentence}
            for one in found.explained
        ],
        "signature": signature._asdict() if signature else None,
        "moved": moved(frame),
        "answers": {answer.question: answer.text for answer in reading.answers},
        "reading": reading.sentences,
        "thresholds": thresholds() | limit,
    }


def _layer_columns() -> list[str]:
    """What is kept of a layer: of 80 layers and every metric, the summary would be longer than the table."""
    columns = []
    for metric in shown_in(Shown.LAYERS):
        ratio = [f"{metric.name}_excess"] if metric.control is not None and metric.control.excess else []
        columns += [metric.name, *ratio]
    return columns


def _describe_role(rows: pd.DataFrame, outstanding: np.ndarray) -> dict[str, Any]:
    metrics = [c for c in rows.columns if c not in {*IDENTITY_COLUMNS, *CONTROL_COLUMNS, *TEXT_COLUMNS}]
    return {
        "matrices": len(rows),
        "out_of_range": int((rows["control"] == JudgedBy.OUT_OF_RANGE.value).sum()),
        "rounding": int(mostly_rounding(rows).sum()),
        "named": int(outstanding.sum()),
        **_describe(rows, metrics),
    }


def _describe(rows: pd.DataFrame, metrics: Iterable[str]) -> dict[str, Any]:
    described = {}
    for metric in metrics:
        values = rows[metric].astype(float)
        values = values[np.isfinite(values)]  # the drift of a base that is all zeros is infinite
        described[metric] = {
            "count": len(values),
            "mean": values.mean(),
            "std": values.std(ddof=0),
            "min": values.min(),
            "median": values.median(),
            "max": values.max(),
        }
    return described
