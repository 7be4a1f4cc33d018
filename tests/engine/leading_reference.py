"""What is read of leading singular values and vectors, from whole decompositions by NumPy.

There is no polarax in it but the noise law of the leading subspaces, which has tests of its own.
"""

import functools
import math

import jax
import numpy as np

from polarax.kernels.noise_law import leading_law


def leading_controls(spectrum, norm, *, shape, k):
    """The law in float64."""
    with jax.enable_x64(True):
        return jax.device_get(_leading_law(spectrum, np.asarray(norm), shape=shape, k=k))


_leading_law = functools.partial(jax.jit, static_argnames=("shape", "k"))(leading_law)


def leading_reference(base, post, *, k, known):
    """The columns that first looks and full analyses share, but for those of the stored types.

    Args:
        base: (m, n).
        post: (m, n).
        k: Leading vectors that are compared; min(m, n) at most are.
        known: How many of the base's values the controls know; of the others they know the mean square.
    """
    base, post = base.astype(np.float64), post.astype(np.float64)
    change = post - base
    rows, cols = base.shape
    rank, entries = min(rows, cols), rows * cols
    k, known = min(k, rank), min(known, rank)
    u_base, s_base, vt_base = np.linalg.svd(base, full_matrices=False)
    u_post, s_post, vt_post = np.linalg.svd(post, full_matrices=False)
    s_change = np.linalg.svd(change, compute_uv=False)
    norm, norm_base = np.linalg.norm(change), np.linalg.norm(base)
    sd = norm / math.sqrt(entries)
    readings = {
        "drift": norm / norm_base,
        "alpha": np.sum(s_base * s_post) / np.sum(s_base**2),
        "alpha_null": 1 + (norm / norm_base) ** 2 / 2,
        "alpha_null_std": sd / norm_base,
        "alpha_entries": np.sum(base * post) / np.sum(base**2),
        "alpha_entries_null": 1.0,
        "alpha_entries_null_std": sd / norm_base,
    }
    for which, values in (("base", s_base), ("post", s_post), ("change", s_change)):
        readings[f"stable_rank_{which}"] = np.sum(values**2) / values[0] ** 2
        readings[f"spectral_norm_{which}"] = values[0]
    readings["spectral_norm_change_null"] = sd * (math.sqrt(rows) + math.sqrt(cols))
    readings["stable_rank_change_null"] = entries / (math.sqrt(rows) + math.sqrt(cols)) ** 2

    # The base's spectrum as far as the controls know it.
    spectrum = s_base.copy()
    if known < rank:
        spectrum[known:] = math.sqrt(np.mean(s_base[known:] ** 2))
    law = leading_controls(spectrum, norm, shape=(rows, cols), k=k)
    readings["spectral_norm_post_null"] = float(law.spectral_norm)
    readings["spectral_norm_post_null_std"] = sd
    readings["stable_rank_post_null"] = (norm_base**2 + norm**2) / readings["spectral_norm_post_null"] ** 2
    for side, before, after in (("left", u_base, u_post), ("right", vt_base.T, vt_post.T)):
        readings[f"overlap_{side}"] = np.sum((before[:, :k].T @ after[:, :k]) ** 2) / k
        readings[f"overlap_{side}_null"] = float(getattr(law, f"overlap_{side}"))

    # The budget of the leading block.
    in_frame = u_base[:, :k].T @ change @ vt_base[:k].T / norm
    diagonal = np.diag(np.diag(in_frame))
    coordinated = np.sum(((in_frame + in_frame.T) / 2 - diagonal) ** 2)
    discordant = np.sum(((in_frame - in_frame.T) / 2) ** 2)
    pairs = k * (k - 1) / 2
    readings |= {
        "leading_scaling": np.sum(diagonal**2),
        "leading_scaling_null": k / entries,
        "leading_coordinated": coordinated,
        "leading_coordinated_null": pairs / entries,
        "leading_discordant": discordant,
        "leading_discordant_null": pairs / entries,
        "leading_coordination": (coordinated - discordant) / (coordinated + discordant) if k > 1 else math.nan,
        "leading_coordination_null_std": 1 / math.sqrt(pairs + 1),
    }
    for name, middle in (("alpha", readings["alpha_null"]), ("alpha_entries", 1.0), ("leading_coordination", 0.0)):
        readings[f"{name}_z"] = (readings[name] - middle) / readings[f"{name}_null_std"]
    return readings
