"""Linear CKA of the states of two models, layer by layer, from sums over tokens.

Centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414) of states X (tokens, d) and Y (tokens, e), their
columns centred, is ||X^T Y||^2 / (||X^T X|| ||Y^T Y||) in Frobenius norms: 1 where one is a rotation and scaling of the
other. X^T Y of all layers with all is what is kept, whatever the length of the text.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sums(NamedTuple):
    """Sums over tokens of states less a shift near their mean, so that little is lost when the mean is taken off."""

    rows: jax.Array  # how many tokens
    shifts: tuple[jax.Array, jax.Array]  # (layers, hidden) of each model
    totals: tuple[jax.Array, jax.Array]
    squares: tuple[jax.Array, jax.Array]  # (layers, hidden, hidden)
    products: jax.Array  # (layers, hidden, layers of the reference, hidden of the reference)


def chosen_layers(layers: tuple[int, int], hidden: tuple[int, int], memory: float) -> tuple[list[int], list[int]]:
    """The layers that a map of all with all takes: every one, or as many evenly spread ones as fit into memory.

    Args:
        layers: How many either model has states of.
        hidden: The size of those.
        memory: Bytes for the sums.
    """
    most = max(layers)
    while (
        most > 2
        and 4
        * (
            min(most, layers[0]) * min(most, layers[1]) * hidden[0] * hidden[1]
            + sum(min(most, count) * size**2 for count, size in zip(layers, hidden, strict=True))
        )
        > memory
    ):
        most -= 1
    first, second = (
        sorted({*np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()}) for count in layers
    )
    return first, second


def first_sums(states: jax.Array, reference: jax.Array, counts: jax.Array | np.ndarray) -> Sums:
    """Empty sums, shifted by the mean of some states (layers, rows, hidden), of which those count where counts is 1."""

    def mean(states):
        return jnp.einsum("lnd,n->ld", states.astype(jnp.float32), counts) / jnp.maximum(counts.sum(), 1)

    first, second = states[:, 0].shape, reference[:, 0].shape
    return Sums(
        jnp.float32(0),
        (mean(states), mean(reference)),
        (jnp.zeros(first), jnp.zeros(second)),
        (jnp.zeros((*first, first[-1])), jnp.zeros((*second, second[-1]))),
        jnp.zeros((*first, *second)),
    )


@functools.partial(jax.jit, donate_argnums=0)
def add_states(sums: Sums, states: jax.Array, reference: jax.Array, counts: jax.Array | np.ndarray) -> Sums:
    """The sums with more states in them; arguments as for `first_sums`."""
    x, y = (
        (part.astype(jnp.float32) - shift[:, None]) * counts[:, None]
        for part, shift in zip((states, reference), sums.shifts, strict=True)
    )

    flat = y.swapaxes(0, 1).reshape(y.shape[1], -1)  # all layers beside one another: one large product is the fastest

    def add_layer(layer, products):
        # One layer of the model with all of the reference: the whole product would be a second copy of the sums.
        return products.at[layer].add((x[layer].T @ flat).reshape(products.shape[1:]))

    squares = [
        square + jnp.einsum("lnd,lne->lde", part, part) for square, part in zip(sums.squares, (x, y), strict=True)
    ]
    return Sums(
        sums.rows + counts.sum(),
        sums.shifts,
        (sums.totals[0] + x.sum(axis=1), sums.totals[1] + y.sum(axis=1)),
        (squares[0], squares[1]),
        jax.lax.fori_loop(0, x.shape[0], add_layer, sums.products),
    )


def alignment(sums: Sums) -> np.ndarray:
    """Linear CKA of each layer (rows) with each of the reference's, float64; NaN where states do not vary."""
    count = float(sums.rows)
    means = [np.asarray(total, np.float64) / count for total in sums.totals]

    def centred(products, left, right):
        return np.asarray(products, np.float64) / count - np.outer(left, right)

    norms = [
        np.array([np.linalg.norm(centred(square, mean, mean)) for square, mean in zip(squares, means_of, strict=True)])
        for squares, means_of in zip(sums.squares, means, strict=True)
    ]
    shared = np.array(
        [
            [np.linalg.norm(centred(row[:, layer], mean, other)) for layer, other in enumerate(means[1])]
            for row, mean in zip(map(np.asarray, sums.products), means[0], strict=True)
        ]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared**2 / np.outer(norms[0], norms[1])
