"""What an edit did: drift, alpha and nf of the edited matrix against the one that it is compared with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.align import rotation_difference
from polarax.kernels.edits.decomposed import Decomposed
from polarax.kernels.frames_type import make_frames
from polarax.kernels.products import frobenius, inner
from polarax.kernels.scaling import scaling


class Measured(NamedTuple):
    """An edited matrix against another one, each (...)."""

    drift: jax.Array  # ||W' - W||_F / ||W||_F
    alpha: jax.Array  # <s, s'> / <s, s>
    nf: jax.Array  # ||Q_U^T Q_V - I||_F / sqrt(r)


def measure_edit(
    original: jax.Array, edited: jax.Array, /, *, original_svd: Decomposed, edited_svd: Decomposed
) -> Measured:
    """Measures an edited matrix against the one it came from, or another one.

    Args:
        original: W, (..., m, n), float32 or float64.
        edited: W', the same shape and dtype.
        original_svd: `decompose(original)`.
        edited_svd: `decompose(edited)`.

    Returns:
        `Measured`; NaN where the original is zero, nf also where the edited one is.
    """
    rows, cols = original.shape[-2:]
    change, norm = frobenius(edited - original), frobenius(original)
    left, right = inner(original_svd.left, edited_svd.left), inner(original_svd.right, edited_svd.right)
    pair = make_frames(
        (rows, cols),
        original_svd.values,
        edited_svd.values,
        left=left,
        right=right,
        in_frame=left,  # of which nothing is read
        change_norm=change,
        s_change=None,
    )
    return Measured(
        jnp.where(norm > 0, change / jnp.where(norm > 0, norm, 1), jnp.nan),
        scaling(original_svd.values, edited_svd.values).alpha,
        rotation_difference(pair),
    )
