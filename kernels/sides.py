"""The sides of a matrix in formulas: numbers where a program is made for one shape, or one side an operand.

What is read of two matrices in each other's frames depends on r = min(m, n) alone, but for a few numbers. A program of
which the longer side is an operand serves all shapes with that r: then (m, n) is that operand, of a floating-point
dtype, before r.
"""

import math

import jax
import jax.numpy as jnp

Side = int | jax.Array
Shape = tuple[Side, int]  # (m, n); of m as an operand m >= n


def longer_side(shape: Shape) -> Side:
    """max(m, n)."""
    rows, cols = shape
    return rows if isinstance(rows, jax.Array) else max(rows, cols)


def shorter_side(shape: Shape) -> int:
    """min(m, n)."""
    rows, cols = shape
    return cols if isinstance(rows, jax.Array) else min(rows, cols)


def entry_count(shape: Shape) -> Side:
    """m n."""
    return longer_side(shape) * shorter_side(shape)


def is_tall(shape: Shape) -> bool:
    """Whether m >= n."""
    rows, cols = shape
    return isinstance(rows, jax.Array) or rows >= cols


def root(x: Side) -> float | jax.Array:
    """The square root of a side, or of a product of sides."""
    return jnp.sqrt(x) if isinstance(x, jax.Array) else math.sqrt(x)
