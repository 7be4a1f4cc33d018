"""What single singular values do that a law for many does not know: measured forms between known limits.

Two numbers say where a value is. Its crowd K is how many values of the base share the arch of the noise law above it: 1
for a value by itself. Its distance from zero is x = z rho, in spacings. The limits are exact: a value by itself, far
from zero, has the standard deviation sqrt(2) / (pi rho), that of one entry of the noise; in a crowd the variance grows
by log(K) / pi^2 (Gustavsson 2005, O'Rourke 2010 for real matrices), but no faster than values have neighbours towards
zero; at zero (square matrices below the noise) the last value is |s + sd g|, g normal, by itself, and in a crowd the
smallest value of a square matrix of noise (Edelman 1988). The constants between were fitted to 3,000 to 400,000 draws
each of 1 x 1, 2 x 2, 4 x 4 and (24 + 0, 1, 3 or 8) x 24 matrices, to about 2%.
"""

import jax
import jax.numpy as jnp


def finite_size(crowd: jax.Array, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The correction of a quantile to the mean, and the standard deviation.

    Args:
        crowd: K >= 1, how many values of the base take part.
        distance: x, the value in spacings.

    Returns:
        By which share the mean is larger than the quantile, and the standard deviation in spacings.
    """
    crowd = jnp.maximum(crowd, 1)
    x = jnp.maximum(distance, jnp.asarray(0.05, distance.dtype))
    single = 0.0162 / x**2 + 3.3 * jnp.exp(-6.85 * x)
    crowded = 0.085 / (x**1.5 * (1 + (x / 3.5) ** 4))
    longer = crowded + (single - crowded) / crowd
    neighbours = jnp.clip(1.5 * x - 0.8, 1, crowd)
    narrowed = (0.26 - 0.08 / crowd) / (1 + (x / 0.7) ** 6)
    return longer, (1 - narrowed) * jnp.sqrt(2 * (1 + 0.4 * jnp.log(neighbours))) / jnp.pi
