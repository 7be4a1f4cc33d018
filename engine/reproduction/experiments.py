"""The experiments: which change of the post's weights, and what it asks."""

from collections.abc import Mapping
from typing import NamedTuple

from polarax.editing.kinds import KINDS
from polarax.editing.settings import ALIGNED, RANDOM, EditSettings
from polarax.errors import UsageError

UNDO = "undo"
SCALED_ROLES = ("q", "k")
_RANDOM_SIGNS = "-random-signs"


class Experiment(NamedTuple):
    """One change of the post's weights."""

    name: str
    weight: str  # what takes the place of W_p, as a formula
    asks: str
    kind: str | None  # of `polarax.editing.KINDS`; None puts the base's weight back
    signs: str = ALIGNED  # of vector pairs, where they are broken

    def settings(self, factor: float, seed: int, method: str) -> EditSettings | None:
        """The edit; None where there is nothing to compute.

        Args:
            factor: That queries and keys are scaled by, of the experiment that scales.
            seed: Of random numbers.
            method: How to decompose.
        """
        if self.kind is None:
            return None
        given = dict.fromkeys(SCALED_ROLES, factor) if "factor" in KINDS[self.kind].options else None
        return EditSettings.parse(self.kind, factor=given, signs=self.signs, seed=seed, measure=False, method=method)

    def changes(self, role: str) -> bool:
        """Whether matrices of a role are changed at all."""
        return self.kind is None or "factor" not in KINDS[self.kind].options or role in SCALED_ROLES


def _experiments() -> list[Experiment]:
    found = [Experiment(UNDO, "W_b", "what does all of the change do?", None)]
    for kind in KINDS.values():
        found.append(Experiment(kind.name, kind.weight, kind.asks, kind.name))
        if "signs" in kind.options:
            asks = "what do signs that are not aligned do?"
            found.append(Experiment(kind.name + _RANDOM_SIGNS, kind.weight, asks, kind.name, RANDOM))
    return found


EXPERIMENTS: Mapping[str, Experiment] = {experiment.name: experiment for experiment in _experiments()}
"""Every experiment by its name: each kind of edit, both kinds of signs, and the base's weights."""


def chosen_experiments(names: str | None) -> list[Experiment]:
    """The experiments of a list with commas, in their own order; all of them without one.

    Raises:
        UsageError: There is no such experiment.
    """
    if not names:
        return list(EXPERIMENTS.values())
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"Unknown experiment {unknown[0]!r}. Expected one of {', '.join(EXPERIMENTS)}.")
    return [experiment for name, experiment in EXPERIMENTS.items() if name in asked]
