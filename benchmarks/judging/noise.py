"""Kinds of pure noise: what happens to weights without anything having been learned.

A kind makes pairs of matrices, base and post, in the dtypes in which they would be stored. Of none of them anything
should be named, but of weight decay that it is one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.judging import changes
from benchmarks.judging.spectra import Subject, reduced

DRIFTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)
# AdamW multiplies by 1 - lr * decay at each step: 1e-5 * 0.1 for a thousand steps, 2e-5 * 0.1 for five thousand,
# 1e-4 * 0.1 for a thousand, 3e-4 * 0.1 for two thousand; lr here is its mean over the schedule.
DECAYS = (1e-3, 1e-2, 1e-2, 6e-2)
_BF16, _FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
_FLOAT32 = np.dtype(np.float32)
_GROUP = 32  # entries of a row that one scale of an int4 quantisation holds for


class Trial(NamedTuple):
    """A pair of matrices as they would be stored, and what it is."""

    base: np.ndarray  # (m, n)
    post: np.ndarray  # alike
    about: str  # which weight, how large a change


# What a kind is made by: from subjects, a batch's number, the shorter side (None: as it is), and a source of chance.
Make = Callable[[Sequence[Subject], int, int | None, np.random.Generator], list[Trial]]


@dataclasses.dataclass(frozen=True)
class Noise:
    """A kind of noise."""

    name: str
    make: Make
    whole: bool = False  # matrices as large as they are: one pass over the subjects
    expected: tuple[str, ...] = ()  # kinds of effects that are so


def _random(subjects, number, size, rng, *, spectrum, stored=_FLOAT32):
    """Random changes of all sizes, of bases that have the subjects' spectra in random directions."""
    trials: list[Trial | None] = [None] * len(subjects)
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, subject in enumerate(subjects):
        by_shape.setdefault((subject.rows, subject.cols) if size is None else subject.shape(size), []).append(index)
    for (rows, cols), indices in by_shape.items():
        short = min(rows, cols)
        drift = np.array([DRIFTS[(index + number) % len(DRIFTS)] for index in indices])
        base = changes.with_spectra(rng, np.stack([reduced(subjects[i].values, short) for i in indices]), rows, cols)
        if spectrum == "isotropic":
            change = changes.isotropic(rng, len(indices), rows, cols)
        else:
            values = [changes.spectrum_of(spectrum, subjects[i].change, short) for i in indices]
            change = changes.with_spectra(rng, np.stack(values), rows, cols)
        post = base + changes.of_size(change, base, drift)
        for place, index in enumerate(indices):
            about = f"{subjects[index].name}, drift {drift[place]:g}"
            trials[index] = Trial(base[place].astype(stored), post[place].astype(stored), about)
    return trials


def _of_entries(subjects, number, size, rng, *, altered, base=_FLOAT32):
    """Blocks of real weights, and what `altered` makes of them."""
    trials = []
    for subject in subjects:
        block = subject.weight() if size is None else subject.block(rng, size)
        stored = block.astype(base)
        trials.append(Trial(stored, altered(stored.astype(np.float32)), subject.name))
    return trials


def _decayed(subjects, number, size, rng, *, stored):
    """Blocks of real weights times one factor, the same for all of a batch: as a schedule implies it.

    The optimiser multiplies its own copy in float32; base and post are that, stored.
    """
    decay = DECAYS[number % len(DECAYS)]
    blocks = _of_entries(subjects, number, size, rng, altered=lambda block: block * np.float32(1 - decay))
    return [
        Trial(base.astype(stored), post.astype(stored), f"{about}, decay {decay:g}") for base, post, about in blocks
    ]


def to_fp8(block: np.ndarray) -> np.ndarray:
    """Entries rounded to e4m3 under one scale, which takes the largest one to the largest of the type."""
    scale = np.abs(block).max() / float(ml_dtypes.finfo(_FP8).max)
    return (block / scale).astype(_FP8).astype(np.float32) * scale


def to_int8(block: np.ndarray) -> np.ndarray:
    """Entries rounded to 8-bit integers, symmetric, with one scale for each row."""
    return _to_integers(block, 127)


def to_int4(block: np.ndarray) -> np.ndarray:
    """Entries rounded to 4-bit integers, symmetric, with one scale for each 32 of a row; what is left of it alike."""
    whole = block.shape[1] // _GROUP * _GROUP
    groups = block[:, :whole].reshape(-1, _GROUP)
    return np.hstack([_to_integers(groups, 7).reshape(len(block), whole), _to_integers(block[:, whole:], 7)])


def _to_integers(rows, largest):
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / largest
    scale = np.where(scale > 0, scale, 1)
    return np.round(rows / scale) * scale


def _stored(dtype, quantised):
    return lambda block: quantised(block).astype(dtype)


def _kinds():
    real, low_rank = changes.REAL, ("low rank",)
    yield Noise("isotropic", functools.partial(_random, spectrum="isotropic"))
    yield Noise("isotropic, both stored in bf16", functools.partial(_random, spectrum="isotropic", stored=_BF16))
    for name in (real, *changes.SPECTRA):
        # That it is of low rank says nothing of directions; so are some real changes.
        expected = low_rank if name == real or name.startswith("rank") else ()
        yield Noise(f"own spectrum: {name}", functools.partial(_random, spectrum=name), expected=expected)
    alterations = {
        "bf16 rounding": (_BF16, np.asarray, _FLOAT32),
        "bf16 rounding, saved as float32": (_FLOAT32, lambda block: block.astype(_BF16).astype(np.float32), _FLOAT32),
        "fp8 rounding": (_FP8, np.asarray, _FLOAT32),
        "fp8 rounding with a scale, saved as bf16": (_BF16, to_fp8, _BF16),
        "int8, saved as float32": (_FLOAT32, to_int8, _FLOAT32),
        "int8, both saved as bf16": (_BF16, to_int8, _BF16),
        "int4, saved as float32": (_FLOAT32, to_int4, _FLOAT32),
        "int4, both saved as bf16": (_BF16, to_int4, _BF16),
    }
    altered = {
        name: functools.partial(_of_entries, altered=_stored(post, alter), base=base)
        for name, (post, alter, base) in alterations.items()
    }
    for name, make in altered.items():
        yield Noise(name, make)
    for stored in (_FLOAT32, _BF16):
        decayed = functools.partial(_decayed, stored=stored)
        yield Noise(f"weight decay, {stored.name}", decayed, expected=("scaled down", "weight decay"))
    yield Noise("isotropic, whole matrices", functools.partial(_random, spectrum="isotropic"), whole=True)
    whole = functools.partial(_random, spectrum=real)
    yield Noise(f"own spectrum: {real}, whole matrices", whole, whole=True, expected=low_rank)
    for name in ("fp8 rounding with a scale, saved as bf16", "int4, both saved as bf16"):
        yield Noise(f"{name}, whole matrices", altered[name], whole=True)


KINDS = {kind.name: kind for kind in _kinds()}
