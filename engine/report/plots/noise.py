"""What isotropic noise of a change's size makes of singular values: the control in pictures of scaling.

It is that of the law of noise (docs, definitions, "Controls"). Runs that do not have its numbers, those written before
it and first looks, are shown the first order: each value stays where it is in the mean, and spreads by the deviation of
an entry.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.rows import norm_of_base

if TYPE_CHECKING:
    from polarax import Run

MEAN, STD = "s_post_null", "s_post_null_std"  # arrays of a run


class NoisySpectrum(NamedTuple):
    """Singular values of base + noise."""

    mean: np.ndarray  # of each, (r,)
    std: np.ndarray  # of each, (r,); NaN if not known
    entry: float  # standard deviation of an entry of the noise; NaN if not known

    def std_of_means(self, number: np.ndarray) -> np.ndarray:
        """Standard deviation of the mean of each of the leading values with its neighbours, `number` in all, (k,).

        Values that are apart spread by `entry` each, independently. Dense ones repel each other: each spreads less, by
        `std`, and (entry / std)^2 neighbours move together. Between the two lies the harmonic sum of the variances.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 / np.sqrt(1 / self.std[: len(number)] ** 2 + (number - 1) / self.entry**2)


def noisy_spectrum(
    row: pd.Series, base: np.ndarray, mean: np.ndarray | None = None, std: np.ndarray | None = None
) -> NoisySpectrum:
    """That of one matrix.

    Args:
        row: Its row.
        base: Singular values of the base, (r,), or the leading ones.
        mean: What the run has of `MEAN`; without it the first order.
        std: What the run has of `STD`.
    """
    entry = float(row.get("drift", np.nan) * norm_of_base(row, base) / np.sqrt(row["rows"] * row["cols"]))
    if mean is None or std is None:
        return NoisySpectrum(base, np.full(len(base), entry), entry)
    return NoisySpectrum(mean, std, entry)


def spectra_beside_noise(run: "Run", rows: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray, NoisySpectrum]]:
    """Name, s_base, s_post and the spectrum under noise of matrices, stack by stack; rows are theirs, by name."""
    # All in one order; some stacks of a run may have been written before there was a law.
    means, stds = (_Matching(run.arrays(kind)) for kind in (MEAN, STD))
    for (name, base), (_, post) in zip(run.arrays("s_base"), run.arrays("s_post"), strict=True):
        mean, std = means.of(name), stds.of(name)
        if name in rows.index:
            yield name, base, post, noisy_spectrum(rows.loc[name], base, mean, std)


class _Matching:
    """Arrays of some of the names that are asked for, in the same order."""

    def __init__(self, arrays: Iterator[tuple[str, np.ndarray]]):
        self._arrays = arrays
        self._next = next(arrays, None)

    def of(self, name: str) -> np.ndarray | None:
        """The array of this name, if there is one."""
        if self._next is None or self._next[0] != name:
            return None
        values, self._next = self._next[1], next(self._arrays, None)
        return values
