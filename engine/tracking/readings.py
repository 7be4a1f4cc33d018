"""What is read of one matrix: against the parameters at init, and against the last measurement.

Names are those of matrices.csv where the number is the same (docs/tracking.md has all).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.kernels.align import difference_of_factors
from polarax.kernels.leading_svd import OVERSAMPLING, leading_svd, restarted
from polarax.kernels.polar import polar_from_svd
from polarax.metrics.budget import budget_columns
from polarax.metrics.controlled import controlled
from polarax.metrics.leading import FRAME_TOLERANCE, leading_columns
from polarax.metrics.leading_null import leading_null
from polarax.metrics.overlap import subspace_overlap
from polarax.metrics.rotation import rotation_columns
from polarax.metrics.scaling import alpha_null, alpha_of_leading
from polarax.metrics.shape import stable_rank_null, stable_rank_of

Arrays = dict[str, jax.Array]

# group -> what it costs beside the others. The first five come out of one leading SVD, the rest is asked for by name.
METRICS = ("change", "scaling", "shape", "overlap", "leading", "budget", "rotation")
DEFAULT_METRICS = METRICS[:5]
_FROM_LEADING = frozenset({"scaling", "shape", "overlap", "leading"})

# Cycles of block Lanczos: at init the vectors are unknown; later two are the rule.
_FIRST_CYCLES, _LATER_CYCLES = 100, 12


class Options(NamedTuple):
    """What to measure."""

    metrics: tuple[str, ...] = DEFAULT_METRICS
    k: int | None = None
    precision: str = "highest"
    spectrum: bool = False  # the whole spectrum too, now and then

    @property
    def leading(self) -> bool:
        """Whether leading singular vectors are followed."""
        return bool(_FROM_LEADING & set(self.metrics))

    def count(self, shape: tuple[int, int]) -> int:
        """Leading values followed of a matrix."""
        return min(16 if self.k is None else self.k, *shape)

    def block(self, shape: tuple[int, int]) -> int:
        """Columns that are iterated on."""
        return min(self.count(shape) + OVERSAMPLING, *shape)

    @property
    def width(self) -> int:
        """Leading values in an array of all matrices: smaller ones have NaN at the end."""
        return 16 if self.k is None else self.k

    def keeps_polar(self, stored: str) -> bool:
        """Whether the base's polar factor is kept: one of bfloat16 would not be accurate, and is found anew."""
        return "rotation" in self.metrics and np.dtype(stored).itemsize >= 4


def reference(base: jax.Array, options: Options, stored: str) -> Arrays:
    """What is kept of a base matrix, (m, n), for as long as the run lasts."""
    shape = (base.shape[0], base.shape[1])
    kept = {"norm": kernels.frobenius(base)}
    if options.leading:
        k, block = options.count(shape), options.block(shape)
        start = jax.random.normal(jax.random.key(0), (shape[1], block), base.dtype)
        leading = leading_svd(
            base,
            start,
            k=k,
            cycles=_FIRST_CYCLES,
            vector_tolerance=FRAME_TOLERANCE,
            precision=options.precision,
        )
        kept |= {"left": leading.left[:, :k], "right": leading.right, "values": leading.values}
    if "budget" in options.metrics:
        decomposition = kernels.svd(base)
        kept |= {"vectors": decomposition.right, "spectrum": decomposition.values}
        if options.keeps_polar(stored):
            factor = polar_from_svd(decomposition)
            kept |= {"polar": factor.factor, "polar_rank": factor.rank}
        return kept
    if options.keeps_polar(stored):
        factor = kernels.polar(base)
        kept |= {"polar": factor.factor, "polar_rank": factor.rank}
    if "rotation" in options.metrics or options.spectrum:
        kept["spectrum"] = kernels.singular_values(base)
    return kept


def names(options: Options) -> tuple[str, ...]:
    """Of all readings of a matrix, from their shapes alone."""
    size = max(options.width, 2)
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)

    def everything(matrix):
        kept = reference(matrix, options, "float32")
        readings = measure(matrix, matrix, kept, start_of(kept), options)[0]
        return readings | (measure_spectrum(matrix, kept)[1] if options.spectrum else {})

    return tuple(name for name in jax.eval_shape(everything, matrix) if name != "values")


def start_of(kept: Arrays) -> Arrays:
    """The last measurement, before there is one: the base itself."""
    return {name: kept[name] for name in ("norm", "left", "right", "values") if name in kept}


def measure(
    matrix: jax.Array, base: jax.Array, kept: Arrays, last: Arrays, options: Options
) -> tuple[Arrays, Arrays, jax.Array]:
    """Readings of one matrix.

    Args:
        matrix: (m, n), m >= n, now.
        base: The same at init.
        kept: What `reference` gave for it.
        last: What this function gave the last time.
        options: What to measure.

    Returns:
        Readings, each (), "values" (k,), all NaN if the matrix is not finite; what to keep for the next time, which
        then is what it was; and whether it is finite.
    """
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, base)
    change = matrix - base
    size = kernels.frobenius(change)
    norm_base = jnp.where(kept["norm"] > 0, kept["norm"], jnp.nan)
    drift = size / norm_base
    # ||W_p||^2 by its difference from ||W_b||^2, which loses no digits where the two are close.
    growth = 2 * jnp.sum(base / norm_base * (change / norm_base)) + drift**2
    norm = jnp.where(kept["norm"] > 0, norm_base * jnp.sqrt(jnp.maximum(1 + growth, 0)), size)
    readings: Arrays = {}
    if "change" in options.metrics:
        readings["drift"] = drift
    now = {"norm": norm}
    if options.leading:
        leading, now = _leading(matrix, change, size, norm, growth, kept, last, options)
        readings |= leading
    if "spectrum" in kept:
        control = kernels.closed_form_controls(kept["spectrum"], size, shape=(matrix.shape[0], matrix.shape[1]))
        if "budget" in options.metrics:
            readings |= _budget(base, change, size, kept, control)
        if "rotation" in options.metrics:
            readings |= _rotation(matrix, base, size, kept, control)
    readings = {name: jnp.where(finite, value, jnp.nan) for name, value in readings.items()}
    now = {name: jnp.where(finite, value, last[name]) for name, value in now.items()}
    return readings, now, finite


def measure_spectrum(matrix: jax.Array, kept: Arrays) -> tuple[jax.Array, Arrays]:
    """The whole spectrum of one matrix, (r,), and what it says against the base's."""
    shape = (matrix.shape[0], matrix.shape[1])
    values, base = kernels.singular_values(matrix), kept["spectrum"]
    rank = jnp.minimum(*(kernels.numerical_rank(s, *shape) for s in (base, values)))
    scaling = kernels.scaling(base, values, rank=rank)._asdict()
    readings = {"alpha_spectrum": scaling.pop("alpha"), **scaling}
    readings |= {"effective_rank": kernels.effective_rank(values), "power_law": kernels.power_law(values).exponent}
    return values, readings


def _leading(matrix, change, size, norm, growth, kept, last, options):
    """What the leading singular values and vectors say, and what to keep of them."""
    shape, metrics = matrix.shape, options.metrics
    k = options.count(shape)
    start = restarted(last["right"], jax.random.key(1))
    leading = leading_svd(matrix, start, k=k, cycles=_LATER_CYCLES, precision=options.precision)
    now = {"norm": norm, "left": leading.left[:, :k], "right": leading.right, "values": leading.values}
    sd = size / math.sqrt(shape[0] * shape[1])
    norm_base = jnp.where(kept["norm"] > 0, kept["norm"], jnp.nan)
    law = leading_null(kept["values"], kept["norm"], size, shape=shape, k=k)
    rank, rank_last, rank_now = (
        kernels.numerical_rank(values[:k], *shape) for values in (kept["values"], last["values"], leading.values)
    )
    readings: Arrays = {"values": leading.values[:k]}
    if "scaling" in metrics:
        alpha = alpha_of_leading(kept["values"][:k], kept["norm"], leading.values[:k], growth)
        last_norm = jnp.where(last["norm"] > 0, last["norm"], jnp.nan)
        since = (norm / last_norm - 1) * (norm / last_norm + 1)
        readings |= {
            **controlled("alpha", alpha, size, null=alpha_null(size / norm_base), std=sd / norm_base),
            "alpha_previous": alpha_of_leading(last["values"][:k], last["norm"], leading.values[:k], since),
        }
    if "shape" in metrics:
        largest = law.spectral_norm
        readings |= {
            "spectral_norm": leading.values[0],
            "spectral_norm_null": largest,
            "spectral_norm_null_std": sd,
            "stable_rank": stable_rank_of(norm, leading.values[0]),
            "stable_rank_null": stable_rank_null(kept["norm"], size, largest),
        }
    if "overlap" in metrics:
        for side in ("left", "right"):
            readings[f"overlap_{side}"] = subspace_overlap(kept[side], now[side], rank, rank_now)
            readings[f"overlap_{side}_null"] = getattr(law, f"overlap_{side}")
            readings[f"overlap_{side}_previous"] = subspace_overlap(last[side], now[side], rank_last, rank_now)
    if "leading" in metrics:
        in_frame = _product(_product(kept["left"].T, change), kept["right"][:, :k])
        readings |= leading_columns(in_frame, size, rank, shape=shape)
    return readings, now


def _budget(base, change, size, kept, control):
    """The drift budget in the whole frame of the base: E = U^T D V with U = W_b V / s."""
    values, vectors = kept["spectrum"], kept["vectors"]
    inside = jnp.arange(values.shape[0]) < kernels.numerical_rank(values, *base.shape)
    across = _product(_product(vectors.T, _product(base.T, change)), vectors)
    in_frame = across / jnp.where(inside, values, 1)[:, None]
    budget = kernels.split_change(jnp.where(inside[:, None] & inside, in_frame, 0), size)
    return budget_columns(budget, control, size)


def _rotation(matrix, base, size, kept, control):
    if "polar" in kept:
        factor, rank = kept["polar"], kept["polar_rank"]
    else:
        factor, rank = kernels.polar(base)[:2]
    now = kernels.polar(matrix)
    nf = difference_of_factors(factor, now.factor, rank, now.rank)
    return rotation_columns(nf, control, size)


def _product(left, right):
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
