"""The experiments in sentences: each number beside that of a random change of the same size."""

from collections.abc import Mapping
from typing import Any

from polarax.reproduction.experiments import UNDO

# Ratios of KL divergences. Two draws of a random change of one size differ by far less than a factor of 2, and a tenth
# of a divergence is hardly ever seen in a loss: where words stand, they hold for another draw too.
_LITTLE = 0.1
_SAME = 2.0
_NOTHING = 1e-3  # of the divergence of undoing all of the change

# What the paper claims (arXiv:2509.17866), by the experiment that asks it.
_CLAIMS = {
    UNDO: "All of the change undone",
    "replace-values": "Singular values replaced by the base's, scaled",
    "break-left": "Left vectors replaced by the base's, signs aligned",
    "break-right": "Right vectors replaced by the base's, signs aligned",
    "break-left-random-signs": "The same left vectors with random signs",
    "break-right-random-signs": "The same right vectors with random signs",
    "restore-left": "Left vectors restored by the right ones' rotation",
    "restore-right": "Right vectors restored by the left ones' rotation",
    "reparameterise": "One rotation for both sides and one factor for all values",
}


def read_out(content: Mapping[str, Any]) -> list[str]:
    """What the numbers say.

    Args:
        content: Of reproduction.json, but the reading.
    """
    rows = {row["name"]: row for row in content["experiments"]}
    labels = [text["label"] for text in content["texts"]]
    lines = [_of_pair(content, label) for label in labels]
    lines += [
        _of_experiment(claim, rows[name], rows.get(UNDO), labels) for name, claim in _CLAIMS.items() if name in rows
    ]
    parts = {name: row for name, row in rows.items() if name.startswith("keep-")}
    if parts:
        lines += [_of_parts(parts, label) for label in labels]
    return [*lines, *_of_temperature(content["temperature"])]


def _of_pair(content: Mapping[str, Any], label: str) -> str:
    post, base = (content[side]["texts"][label] for side in ("post", "base"))
    return (
        f"{label}: the post has a loss of {post['loss']:.4f}, the base {base['loss']:.4f}; the base's distribution of "
        f"the next token is {base['divergence']:.4g} nats from the post's (KL divergence)."
    )


def _of_experiment(claim: str, row: Mapping[str, Any], undo: Mapping[str, Any] | None, labels: list[str]) -> str:
    """One experiment on all texts, and in words what that comes to beside a random change."""
    parts, verdicts, shares = [], [], []
    for label in labels:
        edit, random = row["edit"]["texts"][label], row["random"]["texts"][label]
        verdicts.append(against_random(edit["divergence"], random["divergence"]))
        part = (
            f"{label}: loss {edit['loss']:.4f}, KL {edit['divergence']:.3g}; random change {random['divergence']:.3g}"
        )
        if undo is not None and undo is not row and undo["edit"]["texts"][label]["divergence"] > 0:
            share = edit["divergence"] / undo["edit"]["texts"][label]["divergence"]
            shares.append(share)
            part += f"; {share:.3g} times that of undoing all of the change"
        parts.append(part)
    words = verdicts[0] if len(set(verdicts)) == 1 else "; ".join(map(": ".join, zip(labels, verdicts, strict=True)))
    if shares and max(shares) < _NOTHING:
        words = f"next to nothing, though {words}" if "more" in words else "next to nothing"
    return f"{claim} (a change of {row['edit']['drift']:.3%}): {words}. {'. '.join(parts)}."


def against_random(divergence: float, random: float) -> str:
    """In words, what a change does beside a random one of the same size."""
    if not divergence and not random:
        return "nothing changes"
    if divergence <= _LITTLE * random:
        return "far less than a random change of that size does"
    if divergence * _SAME < random:
        return "less than a random change of that size does"
    if divergence <= _SAME * random:
        return "about what a random change of that size does"
    if divergence <= random / _LITTLE:
        return "more than a random change of that size does"
    return "far more than a random change of that size does"


def _of_parts(rows: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Which part of the drift budget alone brings the base nearest to the post."""
    found = {name: row["edit"]["texts"][label]["divergence"] for name, row in rows.items()}
    nearest = min(found, key=lambda name: found[name])
    listed = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    return (
        f"One part of the change alone on the base's weights, KL from the post on {label}: {listed}; nearest is "
        f"{nearest}."
    )


def _of_temperature(temperature: Mapping[str, Any]) -> list[str]:
    rows = temperature["rows"]
    if not rows:
        return []
    low, high = rows[0], rows[-1]
    curve = (
        f"from {low['scaled']['entropy']:.3f} nats at c = {low['c']:g} to {high['scaled']['entropy']:.3f} at "
        f"c = {high['c']:g}"
    )
    largest = f"scores differ by {temperature['largest_difference']:.2g} of their norm at most"
    if temperature["exact"]:
        agrees = temperature["largest_difference"] <= temperature["within"]
        found = (
            f"the same up to {temperature['within']:g}" if agrees else f"not the same up to {temperature['within']:g}"
        )
        return [
            f"Queries and keys scaled by c are attention's softmax at temperature 1/c^2: {largest}, {found}. The "
            f"entropy of attention goes {curve}."
        ]
    why = "; ".join(temperature["why_not"])
    return [
        f"Queries and keys scaled by c are no temperature in this model: {why}. {largest.capitalize()}; with scaled "
        f"weights the entropy of attention goes {curve}."
    ]
