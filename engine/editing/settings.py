"""What is asked of an edit: checked once, and handed through whole."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from polarax.editing.kinds import Kind, kind_named
from polarax.errors import UsageError
from polarax.kernels import SVD_METHODS
from polarax.loaders import ROLES
from polarax.loaders.dtypes import FLOATING

ALIGNED, RANDOM = SIGNS = ("aligned", "random")
ALL_ROLES = ""


@dataclasses.dataclass(frozen=True)
class EditSettings:
    """Which edit, and how strong."""

    kind: Kind
    strengths: tuple[float, ...]
    factors: tuple[tuple[str, float], ...] = ()  # of scaled values, by role; that of `ALL_ROLES` for all others
    signs: str = ALIGNED
    sd: float | None = None  # of a random change; None is that of the pair's own change
    seed: int = 0
    dtype: np.dtype | None = None  # that edited tensors are stored in; None keeps theirs
    measure: bool = True
    method: str = "auto"

    @classmethod
    def parse(
        cls,
        kind: str,
        *,
        side: str | None = None,
        strength: Any = 1.0,
        factor: Any = None,
        signs: str = ALIGNED,
        sd: float | None = None,
        seed: int = 0,
        store_dtype: Any = None,
        measure: bool = True,
        method: str = "auto",
    ) -> "EditSettings":
        """Reads what users give.

        Args:
            kind: One of `polarax.editing.KINDS`, or "break" and "restore" with a side.
            side: "left" or "right", of those two.
            strength: A number or several, also as text with commas: 0 is the weight that the edit begins with, 1 the
                edit, and what lies between is on the straight line.
            factor: Of "scale-values": a number, or by role: "q=1.1,k=0.9" or a mapping.
            signs: Of "break": how the base's pairs of vectors stand to the post's, "aligned" or "random".
            sd: Of "random-control": standard deviation of each entry; that of the pair's own change by default.
            seed: What random numbers are drawn from, at least 0.
            store_dtype: Type that edited tensors are stored in, such as "float32"; by default each keeps its own.
            measure: Measure what the edit did to singular values and vectors.
            method: How to decompose.

        Raises:
            UsageError: An argument cannot be met.
        """
        found = kind_named(kind, side)
        for name, given, default in (("factor", factor, None), ("signs", signs, ALIGNED), ("sd", sd, None)):
            if given != default and given != "" and name not in found.options:
                raise UsageError(f"--kind={found.name} takes no --{name}. Got --{name}={given}.")
        if signs not in SIGNS:
            raise UsageError(f"Unknown signs {signs!r}. Expected one of {', '.join(SIGNS)}.")
        if seed < 0:
            raise UsageError(f"seed must be at least 0. Got {seed}.")
        if sd is not None and not 0 <= sd < math.inf:
            raise UsageError(f"sd must be finite and at least 0. Got {sd}.")
        if method not in SVD_METHODS:
            raise UsageError(f"Unknown method {method!r}. Expected one of {', '.join(SVD_METHODS)}.")
        factors = _factors(factor)
        if "factor" in found.options and not factors:
            raise UsageError(f"--kind={found.name} needs --factor: what singular values are multiplied by.")
        return cls(found, _strengths(strength), factors, signs, sd, seed, _dtype(store_dtype), measure, method)

    def factor_of(self, role: str) -> float | None:
        """What the values of a role are multiplied by; None of a role that is not to be scaled."""
        factors = dict(self.factors)
        return factors.get(role, factors.get(ALL_ROLES))

    @property
    def decomposes(self) -> bool:
        """Whether singular vectors of base and post are needed: for the edit, or to measure it."""
        return self.measure or not (self.kind.alone or self.kind.plan is None)

    @property
    def several(self) -> bool:
        """Whether a checkpoint is written for each of several strengths."""
        return len(self.strengths) > 1

    def describe(self) -> dict[str, Any]:
        """The settings as they are kept beside what was written; JSON-ready."""
        described: dict[str, Any] = {"kind": self.kind.name}
        if self.factors:
            described["factor"] = dict(self.factors)
        if "signs" in self.kind.options:
            described["signs"] = self.signs
        if "sd" in self.kind.options:
            described["sd"] = self.sd
        if self.signs == RANDOM or "seed" in self.kind.options:
            described["seed"] = self.seed
        if self.dtype is not None:
            described["store_dtype"] = self.dtype.name
        return described | {"method": self.method}


def _strengths(given: Any) -> tuple[float, ...]:
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, Iterable) else [given]
    strengths = []
    for word in words:
        try:
            number = float(word)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"strength={given!r} cannot be read. Expected finite numbers: 0,0.25,0.5,1.")
        strengths.append(number)
    if not strengths or len(set(strengths)) < len(strengths):
        raise UsageError(f"strength must be one number, or several that differ. Got {given!r}.")
    return tuple(strengths)


def _factors(given: Any) -> tuple[tuple[str, float], ...]:
    if given is None or given == "":
        return ()
    if isinstance(given, str) and "=" in given:
        parts = [word.partition("=") for word in given.split(",")]
        given = {role.strip(): number for role, _, number in parts}
    if not isinstance(given, Mapping):
        given = {ALL_ROLES: given}
    factors = []
    for role, number in given.items():
        if role not in (ALL_ROLES, *ROLES):
            raise UsageError(f"Unknown role {role!r} in --factor. Expected one of {', '.join(ROLES)}.")
        try:
            value = float(number)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"factor={number!r} is no finite number.")
        factors.append((role, value))
    return tuple(factors)


def _dtype(given: Any) -> np.dtype | None:
    if given is None or given == "":
        return None
    known = {dtype.name: dtype for dtype in FLOATING}
    name = given if isinstance(given, str) else np.dtype(given).name
    if name not in known:
        raise UsageError(f"Unknown store_dtype {name!r}. Expected one of {', '.join(sorted(known))}.")
    return known[name]
