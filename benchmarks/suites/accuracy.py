"""Errors of every method on matrices of prescribed spectra, judged as LAPACK judges its drivers.

Three kinds of records, by `what`:

- "svd": the ratios ||A - U S V^T|| / (||A|| max(m, n) eps), ||I - U^T U|| / (max(m, n) eps), the same
  for V, and whether s is descending and >= 0 (LAPACK's xDRVBD; a ratio above 50 is a failure);
- "svd", "values" and "nf": the relative errors of singular values and nf;
- "pair": the whole analysis of stored weights, by the targets of the project.

The reference is `benchmarks.reference`, of the entries as they are stored: rounding a matrix to
float32 moves its small singular values by far more than a float64 method's error.
"""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from benchmarks import device, peers, reference
from benchmarks.cases import Case, Record, one_line
from benchmarks.engine import pair_analysis
from benchmarks.matrices import CLASSES, fine_tuned, language_model_weight, of_class
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from polarax import kernels

_SHAPES = ((128, 128), (192, 64), (64, 192), (65, 64), (1, 48), (48, 1))
_SHORT_SHAPES = ((48, 48), (24, 72))
_PAIR_SHAPES = ((192, 192), (384, 96), (96, 384))
_SHORT_PAIR_SHAPES = ((64, 64),)
# About 0.1 / eps of float32, and well inside float64.
_CONDITIONS = {"float32": 1e5, "float64": 1e12}
# Size of the change whose nf is measured, relative to the base.
_DRIFT = 1e-2
# The project's target for singular values: relative, plus a part of the largest.
_TARGET_RELATIVE, _TARGET_OF_LARGEST = 1e-6, 1e-9


class Decomposer(NamedTuple):
    """Somebody's SVD and what else is judged; arrays in and out are numpy's, in the same dtype."""

    name: str
    svd: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None  # U, s, V^T
    values: Callable[[np.ndarray], np.ndarray] | None = None
    nf: Callable[[np.ndarray, np.ndarray], float] | None = None


def cases(options: Options) -> list[Case]:
    """Pairs first: they are what the targets are about. Then each dtype and shape, all classes."""
    pairs = _SHORT_PAIR_SHAPES if options.short else _PAIR_SHAPES
    shapes = _SHORT_SHAPES if options.short else _SHAPES
    return [
        *(
            Case(f"pairs, {rows} x {cols}, {stored}", functools.partial(_pairs, options, *shape))
            for rows, cols in pairs
            for stored in ("bfloat16", "float32")
            for shape in [(_small(rows, options), _small(cols, options), stored)]
        ),
        *(
            Case(f"classes, {rows} x {cols}, {dtype}", functools.partial(_classes, options, *shape))
            for rows, cols in shapes
            for dtype in sorted(device.dtypes())
            for shape in [(_small(rows, options), _small(cols, options), dtype)]
        ),
    ]


def _small(size, options):
    return size if size == 1 else shrunk(size, options.shrink)


# Classes of matrices.


def _classes(options, rows, cols, dtype) -> list[Record]:
    judged = [_Judged.make(kind, rows, cols, dtype, options.seed) for kind in CLASSES]
    records = []
    for decomposer in _decomposers(options, dtype):
        for matrix in judged:
            common = {
                "case": f"{matrix.name} {rows}x{cols} {dtype}",
                "class": matrix.name,
                "rows": rows,
                "cols": cols,
                "dtype": dtype,
                "contestant": decomposer.name,
            }
            for what, judge in (("svd", _svd_errors), ("values", _value_errors), ("nf", _nf_error)):
                try:
                    errors = judge(decomposer, matrix)
                except Exception as error:
                    errors = {"error": one_line(error)}
                if errors is not None:
                    records.append({**common, "what": what, **errors})
    return records


class _Judged(NamedTuple):
    """A matrix of a class with its reference, and the same after a small change."""

    name: str
    entries: np.ndarray
    exact: reference.Reference
    post: np.ndarray
    nf: float | None  # None where nf is not determined

    @classmethod
    def make(cls, kind, rows, cols, dtype, seed):
        seed = seed + zlib.crc32(f"{kind.name} {rows} {cols}".encode())
        condition = _CONDITIONS[dtype]
        made = of_class(kind, rows, cols, condition=condition, dtype=dtype, seed=seed)
        base = made.entries.astype(dtype)
        exact = reference.svd(base)
        nf, post = None, base
        if kind.full_rank:
            post = fine_tuned(base.astype(np.float64), drift=_DRIFT, seed=seed).astype(dtype)
            nf = reference.rotation_difference(exact, reference.svd(post))
        return cls(kind.name, base, exact, post, nf)


def _svd_errors(decomposer, matrix):
    if decomposer.svd is None:
        return None
    left, values, right_t = decomposer.svd(matrix.entries)
    unit = max(matrix.entries.shape) * np.finfo(matrix.entries.dtype).eps
    scale = float(matrix.exact.values[0]) or 1.0  # so that products neither over- nor underflow
    exact = matrix.entries.astype(np.longdouble) / scale
    product = (left.astype(np.longdouble) * (values.astype(np.longdouble) / scale)) @ right_t
    norm = np.abs(exact).sum(axis=0).max()
    return {
        "reconstruction": float(np.abs(exact - product).sum(axis=0).max() / (norm or 1) / unit),
        "left": _orthogonality(left, unit),
        "right": _orthogonality(right_t.T, unit),
        "ordered": bool(np.all(values >= 0) and np.all(values[1:] <= values[:-1])),
        **_spectrum_errors(values, matrix.exact.values),
    }


def _value_errors(decomposer, matrix):
    if decomposer.values is None:
        return None
    return _spectrum_errors(decomposer.values(matrix.entries), matrix.exact.values)


def _nf_error(decomposer, matrix):
    if decomposer.nf is None or matrix.nf is None:
        return None
    return {"nf_error": _relative(decomposer.nf(matrix.entries, matrix.post), matrix.nf)}


def _orthogonality(vectors, unit):
    vectors = vectors.astype(np.longdouble)
    difference = vectors.T @ vectors - np.eye(vectors.shape[1])
    return float(np.abs(difference).sum(axis=0).max() / unit)


def _spectrum_errors(values, exact):
    """Worst error over the largest value in eps, worst relative error, and the target's share.

    `target` is the worst error over what the project allows, 1e-6 s + 1e-9 s_1: at most 1 is met.
    """
    eps = np.finfo(values.dtype).eps
    errors = np.abs(values.astype(np.longdouble) - exact)
    largest = exact[0] or 1
    relative = np.divide(errors, exact, out=np.zeros_like(exact), where=exact > eps * largest)
    allowed = _TARGET_RELATIVE * exact + _TARGET_OF_LARGEST * largest
    return {
        "value_error_of_largest": _maximum(errors / largest / eps),
        "value_error": _maximum(relative),
        "target": _maximum(errors / allowed),
    }


def _maximum(errors):
    """The largest, NaN if any is NaN."""
    return float(np.max(errors))


def _relative(value, exact):
    return abs(float(value) - exact) / exact if exact else abs(float(value))


def _decomposers(options, dtype) -> Iterator[Decomposer]:
    for method in kernels.SVD_METHODS:
        if not options.methods or method in options.methods:
            yield Decomposer(f"polarax {method}", svd=_our_svd(method, dtype), values=_our_values(method, dtype))
    for method in kernels.POLAR_METHODS:
        if not options.methods or method in options.methods:
            yield Decomposer(f"polarax polar {method}", nf=_our_nf(method, dtype))
    for library in peers.libraries(options.peers, options.threads):
        yield Decomposer(
            library.name,
            svd=lambda x, own=library: tuple(_numpy(part) for part in own.svd(own.put(x))),
            values=lambda x, own=library: _numpy(own.singular_values(own.put(x))),
            nf=functools.partial(_their_nf, library),
        )


def _their_nf(library, base, post):
    with library.scope(base):
        return peers.rotation_difference(library, library.put(base), library.put(post))


def _numpy(array):
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _our_svd(method, dtype):
    function = jax.jit(lambda x: kernels.svd(x, method=method))

    def svd(x):
        with device.scope(dtype):
            left, values, right = map(np.asarray, function(x))
        return left, values, right.T

    return svd


def _our_values(method, dtype):
    function = jax.jit(lambda x: kernels.singular_values(x, method=method))

    def values(x):
        with device.scope(dtype):
            return np.asarray(function(x))

    return values


def _our_nf(method, dtype):
    function = jax.jit(lambda base, post: kernels.align(base, post, method=method).nf)

    def nf(base, post):
        with device.scope(dtype):
            return float(function(base, post))

    return nf


# The whole analysis of stored weights.


def _pairs(options, rows, cols, stored) -> list[Record]:
    dtype = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    records = []
    for condition in (1e3, 1e5):
        weight = language_model_weight(rows, cols, condition=condition, seed=options.seed).entries
        base = weight.astype(dtype)
        post = fine_tuned(weight, drift=_DRIFT, seed=options.seed + 1).astype(dtype)
        exact = [reference.svd(side.astype(np.float64)) for side in (base, post)]
        nf = reference.rotation_difference(*exact)
        for name, working, analyse in _analyses(options):
            record = {
                "case": f"language model weight, condition {condition:.0e}, {rows}x{cols} {stored}",
                "class": f"language model weight, condition {condition:.0e}",
                "what": "pair",
                "stored": stored,
                "dtype": working,
                "rows": rows,
                "cols": cols,
                "contestant": name,
            }
            try:
                s_base, s_post, own_nf = analyse(base, post)
            except Exception as error:
                records.append({**record, "error": one_line(error)})
                continue
            spectra = [
                _spectrum_errors(np.asarray(s), side.values) for s, side in zip((s_base, s_post), exact, strict=True)
            ]
            worst = {key: _maximum([errors[key] for errors in spectra]) for key in spectra[0]}
            records.append({**record, **worst, "nf_error": _relative(own_nf, nf)})
    return records


def _analyses(options):
    """Name, working dtype and function (base, post) -> s_base, s_post, nf of each contestant."""
    for method in kernels.SVD_METHODS:
        if method in (options.methods or kernels.SVD_METHODS):
            for working in device.dtypes():
                if not options.short or (method, working) == ("auto", device.dtypes()[0]):
                    yield f"polarax {method} {working}", working, _our_analysis(method, working)
    for name, library, analyse in peers.scripts(options.peers, options.threads):

        def theirs(base, post, library=library, analyse=analyse):
            readings = analyse(library.put(base), library.put(post))
            return _numpy(readings["s_base"]), _numpy(readings["s_post"]), readings["nf"]

        yield f"{name} script float32", "float32", theirs


def _our_analysis(method, working):
    def analyse(base, post) -> tuple[Any, Any, Any]:
        stacks = device.put(base[None]), device.put(post[None])
        groups = ("scaling", "rotation")
        program = pair_analysis("", *stacks, dtype=working, groups=groups, method=method)
        (readings,) = jax.device_get(program.call()).posts
        return readings["s_base"][0], readings["s_post"][0], readings["nf"][0]

    return analyse
