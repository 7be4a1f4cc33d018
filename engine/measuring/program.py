"""The compiled program of a run: a stack of matrices of one shape in, every reading of every matrix out."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax import kernels
from polarax.measuring.sampled_controls import sampled_controls
from polarax.metrics import sampled_metrics

Item = TypeVar("Item")
Readings = dict[str, jax.Array]

# Groups that read the singular vectors; without them the singular values are enough.
GROUPS_WITH_VECTORS = {"rotation", "budget", "fit", "overlap"}

STATIC = ("groups", "top_k", "dtype", "method", "draws", "pictures", "mesh", "batched")


@functools.partial(jax.jit, static_argnames=STATIC)
def measure_stack(
    base: jax.Array,
    post: jax.Array,
    keys: jax.Array | None = None,
    *,
    groups: tuple[str, ...],
    top_k: int = 16,
    dtype: str = "float64",
    method: str = "auto",
    draws: int = 0,
    pictures: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    batched: bool = True,
) -> Readings:
    """Reads a stack of pairs.

    Args:
        base: (count, m, n) in the stored dtype.
        post: (count, m, n) in its stored dtype.
        keys: (count, 2), uint32: what each pair's random changes are drawn from (`matrix_key`); only with draws.
        groups: Metric groups of `polarax.metrics.GROUPS`.
        top_k: Size of the leading subspaces compared.
        dtype: Working dtype, "float64" (under an enabled x64 scope) or "float32".
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.
        draws: Random changes of each kind to draw for the sampled controls.
        pictures: Whether "rotation" has its arrays.
        mesh: Devices to divide the stack over, along its one axis; count must be a multiple of their number. Each
            works on its share alone.
        batched: Take the stack as one batch, as accelerators want it; otherwise matrix by matrix, which on CPU keeps
            memory at one matrix's.

    Returns:
        Column name -> (count,) for the metrics of the groups and what their controls and status need; and the arrays
        `s_base`, `s_post`, with "shape" also `s_change`, each (count, r), with "overlap" also `cosines_left` and
        `cosines_right`, each (count, k), with "rotation" also `rotation_left`, `rotation_right` and
        `rotation_difference`, each (count, k, k), k at most 64.
    """
    measure = functools.partial(
        _measure, groups=groups, top_k=top_k, dtype=dtype, method=method, draws=draws, pictures=pictures
    )
    return over_stack(measure, (base, post) if keys is None else (base, post, keys), mesh, batched)


def over_stack(measure: Callable[..., Item], stacks: tuple, mesh: jax.sharding.Mesh | None, batched: bool) -> Item:
    """measure(*stacks), each device its share, as one batch or matrix by matrix."""

    def measure_share(*stacks):
        return measure(*stacks) if batched else lax.map(lambda pair: measure(*pair), stacks)

    if mesh is None:
        return measure_share(*stacks)
    along_stack = jax.sharding.PartitionSpec(*mesh.axis_names)
    sharded = jax.shard_map(measure_share, mesh=mesh, in_specs=along_stack, out_specs=along_stack, check_vma=False)
    return sharded(*stacks)


def _measure(
    base_stored: jax.Array,
    post_stored: jax.Array,
    keys: jax.Array | None = None,
    *,
    groups: tuple[str, ...],
    top_k: int,
    dtype: str,
    method: str,
    draws: int,
    pictures: bool,
) -> Readings:
    draws = draws if sampled_metrics(groups) else 0
    with_change_values = "shape" in groups or draws > 0
    if GROUPS_WITH_VECTORS & set(groups):
        found = kernels.frames(base_stored, post_stored, change_values=with_change_values, dtype=dtype, method=method)
        spectra = Spectra(found.s_base, found.s_post, found.s_change, found.change_norm)
    else:
        found = None
        spectra = _spectra(base_stored.astype(dtype), post_stored.astype(dtype), with_change_values, method)
    read = functools.partial(read_pair, groups=groups, top_k=top_k, dtype=dtype, pictures=pictures)
    readings = read(base_stored, post_stored, found, spectra)
    if "change" in groups:
        readings |= change_readings(base_stored, post_stored, spectra.s_base, spectra.change_norm)
    if draws:
        readings |= sampled_readings(base_stored, post_stored, keys, readings, spectra, groups, draws, dtype, method)
    return readings


class Spectra(NamedTuple):
    """Singular values of base, post and change, descending, (..., r), and the norm of the change, (...)."""

    s_base: jax.Array
    s_post: jax.Array
    s_change: jax.Array | None
    change_norm: jax.Array


def _spectra(base: jax.Array, post: jax.Array, with_change_values: bool, method: str) -> Spectra:
    wanted = [base, post, post - base] if with_change_values else [base, post]
    s_base, s_post, s_change = (*kernels.singular_values(jnp.stack(wanted), method=method), None)[:3]
    return Spectra(s_base, s_post, s_change, kernels.frobenius(post - base))


def read_pair(
    base_stored: jax.Array,
    post_stored: jax.Array,
    pair: kernels.Frames | None,
    spectra: Spectra,
    *,
    groups: tuple[str, ...],
    top_k: int,
    dtype: str,
    pictures: bool = True,
) -> Readings:
    """Everything but the sampled controls, and what depends on the stored dtypes."""
    shape = (base_stored.shape[-2], base_stored.shape[-1])
    s_base, s_post, s_change, change_norm = spectra
    readings = {
        "nonfinite_base": _nonfinite(base_stored, dtype, s_base, s_post),
        "nonfinite_post": _nonfinite(post_stored, dtype, s_base, s_post),
        "change_norm": change_norm,
    }
    rank_base, rank_post = (kernels.numerical_rank(values, *shape) for values in (s_base, s_post))
    control = kernels.closed_form_controls(s_base, change_norm, shape=shape)
    readings |= {
        "s_base": s_base,
        "s_post": s_post,
        "rank_base": rank_base,
        "rank_post": rank_post,
        "control_reach": control.reach,
    }
    if "scaling" in groups:
        readings |= _scaling(s_base, s_post, control, shape=shape)
    if pair is not None:
        readings |= _rotation(pair, control, groups)
    if pair is not None and "rotation" in groups and pictures:
        readings |= _pictures(pair)
    if pair is not None and "overlap" in groups:
        readings |= _overlap(kernels.overlap_of_frames(pair, k=top_k))
    if "shape" in groups:
        assert s_change is not None
        readings |= _shape({"base": s_base, "post": s_post, "change": s_change})
    return readings


def sampled_readings(
    base: jax.Array,
    post: jax.Array,
    keys: jax.Array | None,
    readings: Readings,
    spectra: Spectra,
    groups: tuple[str, ...],
    draws: int,
    dtype: str,
    method: str,
) -> Readings:
    """The columns of the sampled controls of what has been read."""
    assert keys is not None and spectra.s_change is not None
    drawn = sampled_controls(
        functools.partial(_headlines, groups=groups),
        base,
        post,
        spectra.s_change,
        keys,
        draws=draws,
        dtype=dtype,
        method=method,
    )
    columns: Readings = {}
    for metric, control_of in drawn.items():
        for kind, (mean, std) in control_of.items():
            columns |= {
                f"{metric}_{kind}": mean,
                f"{metric}_{kind}_std": std,
                f"{metric}_{kind}_z": _z(readings[metric], mean, std, spectra.change_norm),
            }
    return columns


def _headlines(pair: kernels.Frames, groups: tuple[str, ...]) -> Readings:
    """The metrics of a pair whose control is sampled, by the same functions as all others."""
    control = kernels.closed_form_controls(pair.s_base, pair.change_norm, shape=pair.shape)
    readings = _scaling(pair.s_base, pair.s_post, control, shape=pair.shape) | _rotation(pair, control, groups)
    return {metric: readings[metric] for metric in sampled_metrics(groups)}


def _nonfinite(x: jax.Array, dtype: str, s_base: jax.Array, s_post: jax.Array) -> jax.Array:
    """Entries of x that are not finite in the working dtype; counted only where the largest singular values are not."""
    return lax.cond(
        jnp.all(jnp.isfinite(s_base[..., 0]) & jnp.isfinite(s_post[..., 0])),
        lambda: jnp.zeros(x.shape[:-2], jnp.int32),
        lambda: jnp.sum(~jnp.isfinite(x.astype(dtype)), axis=(-2, -1), dtype=jnp.int32),
    )


def change_readings(base: jax.Array, post: jax.Array, s_base: jax.Array, change_norm: jax.Array) -> Readings:
    """The group change, which depends on the stored dtypes."""
    shape = (base.shape[-2], base.shape[-1])
    noise = jnp.maximum(*(kernels.rounding_noise(x, x.dtype) for x in (base, post))).astype(change_norm.dtype)
    return {
        "drift": change_norm / kernels.frobenius(s_base[..., None, :]),
        "unchanged": kernels.unchanged_share(base, post),
        "rounding_share": _over(noise, change_norm, change_norm),
        "nf_rounding": kernels.closed_form_controls(s_base, noise, shape=shape).nf,
        "spectral_norm_rounding": kernels.noise_spectral_norm(noise, shape),
    }


def _scaling(s_base: jax.Array, s_post: jax.Array, control: kernels.Controls, *, shape: tuple[int, int]) -> Readings:
    rank = jnp.minimum(*(kernels.numerical_rank(values, *shape) for values in (s_base, s_post)))
    scaling = kernels.scaling(s_base, s_post, rank=rank)
    return {
        **scaling._asdict(),
        "alpha_null": control.alpha,
        "alpha_null_std": control.alpha_std,
        "alpha_z": _over(scaling.alpha - control.alpha, control.alpha_std, control.alpha_std),
        "ratio_cv_null": control.ratio_cv,
    }


def _rotation(pair: kernels.Frames, control: kernels.Controls, groups: tuple[str, ...]) -> Readings:
    """What needs the singular vectors and has a control: the groups rotation, budget and fit."""
    readings: Readings = {}
    if "rotation" in groups:
        nf = kernels.rotation_difference(pair)
        readings |= {
            "nf": nf,
            "nf_null": control.nf,
            "nf_null_std": control.nf_std,
            "nf_excess": _over(nf, control.nf, pair.change_norm),
            "nf_z": _over(nf - control.nf, control.nf_std, pair.change_norm),
        }
    if "budget" in groups:
        readings |= _budget(kernels.budget_of_frames(pair), control)
    if "fit" in groups:
        readings |= {f"fit_{name}": value for name, value in kernels.fit_of_frames(pair)._asdict().items()}
        readings["fit_error_null"] = control.fit_error
    return readings


def _overlap(overlap: kernels.Overlap) -> Readings:
    names = ("intruders_left", "intruders_right", "cosines_left", "cosines_right")
    return {f"overlap_{side}": getattr(overlap, side) for side in ("left", "right")} | {
        name: getattr(overlap, name) for name in names
    }


def _pictures(pair: kernels.Frames) -> Readings:
    """|Q_U|, |Q_V| and |Q_U - Q_V| as pictures, for people to look at: float32 is enough."""
    turned = {"left": pair.left, "right": pair.right, "difference": pair.left - pair.right}
    return {f"rotation_{which}": kernels.block_magnitudes(x).astype(jnp.float32) for which, x in turned.items()}


def _budget(budget: kernels.DriftBudget, control: kernels.Controls) -> Readings:
    shares = {f"budget_{part}": getattr(budget, part) for part in ("scaling", "coordinated", "discordant", "outside")}
    return {
        **shares,
        **{f"{share}_null": getattr(control, share) for share in shares},
        "coordination": budget.coordination,
        "coordination_null_std": control.coordination_std,
        "coordination_z": budget.coordination / control.coordination_std,
    }


def _shape(spectra: Mapping[str, jax.Array]) -> Readings:
    readings: Readings = {}
    for which, values in spectra.items():
        readings |= {
            f"stable_rank_{which}": kernels.stable_rank(values),
            f"effective_rank_{which}": kernels.effective_rank(values),
            f"spectral_norm_{which}": values[..., 0],
        }
        if which == "change":
            readings["s_change"] = values
        else:
            readings[f"power_law_{which}"] = kernels.power_law(values).exponent
    return readings


def _z(value: jax.Array, mean: jax.Array, std: jax.Array, change: jax.Array) -> jax.Array:
    """Distance from the mean of draws in their standard deviations; NaN where these are rounding errors.

    What is sampled has no unit and is of the size of 1, or its deviation far from eps.
    """
    return _over(value - mean, jnp.where(std > 4 * jnp.finfo(std.dtype).eps, std, 0), change)


def _over(value: jax.Array, unit: jax.Array, change: jax.Array) -> jax.Array:
    """value / unit; NaN where the unit is 0, or nothing changed: one rounding error over another says nothing."""
    return jnp.where((change > 0) & (unit > 0), value / unit, jnp.nan)
