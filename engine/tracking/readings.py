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
from polarax.metrics.rotation import rotation_columns

Arrays = dict[str, jax.Array]

# group -> what it costs beside the others. The first five come out of one leading SVD, the rest is asked for by name.
METRICS = ("change", "scaling", "shape", "overlap", "leading", "budget", "rotation")
DEFAULT_METRICS = METRICS[:5]
_FROM_LEADING = frozenset({"scaling", "shape", "overlap", "leading"})

# Cycles of block Lanczos: at init the vectors are unknown; later two are the rule.
_FIRST_CYCLES, _LATER_CYCLES = 100, 12

# Error of the base's leading vectors, in radians. What is read of the change in their frame errs by as much as they do;
# values and overlaps, which err by its square, are all that is read of later ones.
FRAME_TOLERANCE = 1e-5


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
    known, tail = _known_spectrum(kept, shape)
    readings: Arrays = {"values": leading.values[:k]}
    if "scaling" in metrics:
        alpha = _alpha(kept["values"][:k], kept["norm"], leading.values[:k], growth)
        alpha_null, alpha_std = 1 + (size / norm_base) ** 2 / 2, sd / norm_base
        last_norm = jnp.where(last["norm"] > 0, last["norm"], jnp.nan)
        since = (norm / last_norm - 1) * (norm / last_norm + 1)
        readings |= {
            **controlled("alpha", alpha, size, null=alpha_null, std=alpha_std),
            "alpha_previous": _alpha(last["values"][:k], last["norm"], leading.values[:k], since),
        }
    if "shape" in metrics:
        largest_null = _largest_null(known, tail, sd, shape)
        readings |= {
            "spectral_norm": leading.values[0],
            "spectral_norm_null": largest_null,
            "spectral_norm_null_std": sd,
            "stable_rank": (norm / _positive(leading.values[0])) ** 2,
            "stable_rank_null": (norm_base**2 + size**2) / _positive(largest_null) ** 2,
        }
    if "overlap" in metrics:
        lost, outside = _overlap_lost(known, tail, sd, shape, k)
        for side, side_lost in (("left", lost + outside), ("right", lost)):
            readings[f"overlap_{side}"] = _overlap(kept[side], now[side], k)
            readings[f"overlap_{side}_null"] = jnp.clip(1 - side_lost, 0, 1)
            readings[f"overlap_{side}_previous"] = _overlap(last[side], now[side], k)
    if "leading" in metrics:
        in_frame = _product(_product(kept["left"].T, change), kept["right"][:, :k])
        shares = kernels.split_change(in_frame, size)
        pairs, entries = k * (k - 1) / 2, shape[0] * shape[1]
        for name, null in (("scaling", k), ("coordinated", pairs), ("discordant", pairs)):
            readings[f"leading_{name}"] = getattr(shares, name)
            readings[f"leading_{name}_null"] = jnp.asarray(null / entries, sd.dtype)
        readings["leading_coordination"] = shares.coordination
        readings["leading_coordination_null_std"] = jnp.asarray(1 / math.sqrt(pairs + 1), sd.dtype)
    return readings, now


def _alpha(base, norm_base, values, growth):
    """alpha = <s_b, s_p> / <s_b, s_b> from the k leading values and the norms.

    The rest of the spectrum is taken as scaled by one factor, which its norms give. By Cauchy and Schwarz that is at
    most ||rest_p - c rest_b||^2 / (2 ||W_b||^2) too large: second order in how unevenly the rest was scaled.
    """
    unit = jnp.where(norm_base > 0, norm_base, jnp.nan)
    base, values = base / unit, values / unit
    rest_base = jnp.sqrt(jnp.maximum(1 - jnp.sum(base**2), 0))
    rest_growth = growth - jnp.sum((values - base) * (values + base))
    rest = jnp.sqrt(jnp.maximum(rest_base**2 + rest_growth, 0))
    total = rest + rest_base
    rest_change = jnp.where(total > 0, rest_growth / jnp.where(total > 0, total, 1), 0)
    return 1 + jnp.sum(base * (values - base)) + rest_base * rest_change


def _known_spectrum(kept, shape):
    """The base's b leading values, and the root mean square of the others."""
    values = kept["values"]
    others = max(min(shape) - values.shape[0], 1)
    return values, jnp.sqrt(jnp.maximum(kept["norm"] ** 2 - jnp.sum(values**2), 0) / others)


def _largest_null(known, tail, sd, shape):
    """Mean of s_1 under an isotropic change, to second order: others repel it."""
    largest, others = known[0], min(shape) - known.shape[0]
    gaps = jnp.maximum(largest**2 - known[1:] ** 2, sd * largest)
    pushed = jnp.sum(1 / _positive(gaps)) + others / _positive(jnp.maximum(largest**2 - tail**2, sd * largest))
    free = max(shape) - min(shape)
    return largest + sd**2 * (largest * pushed + free / (2 * _positive(largest)))


def _overlap_lost(known, tail, sd, shape, k):
    """1 - overlap of the k leading vectors under an isotropic change, to first order; what is lost besides on the left.

    v_i turns towards v_j with variance sd^2 (s_i^2 + s_j^2) / (s_i^2 - s_j^2)^2; half is lost at most, where the two
    cannot be told apart.
    """
    values = jnp.append(known[k:], tail)
    counts = jnp.append(jnp.ones(known.shape[0] - k, known.dtype), min(shape) - known.shape[0])
    inside, others = known[:k, None], values[None, :]
    turned = sd**2 * (inside**2 + others**2) / _positive(inside**2 - others**2) ** 2
    lost = jnp.sum(jnp.where(inside > others, jnp.minimum(turned, 0.5), 0.5) * counts) / k
    free = max(shape) - min(shape)
    outside = jnp.sum(jnp.minimum(free * sd**2 / _positive(known[:k]) ** 2, 1)) / k
    unchanged = sd <= 0
    return jnp.where(unchanged, 0, lost), jnp.where(unchanged, 0, outside)


def _overlap(first, second, k):
    """||A^T B||_F^2 / k of two bases' first k columns."""
    return jnp.minimum(jnp.sum(_product(first[:, :k].T, second[:, :k]) ** 2) / k, 1)


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


def _positive(x):
    return jnp.where(x > 0, x, jnp.nan)
