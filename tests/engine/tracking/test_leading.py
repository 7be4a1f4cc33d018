"""What is read of the change in the frame of the base's leading vectors, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.tracking import readings
from tests.engine.tracking import trees

K, DRAWS = 4, 8
OPTIONS = readings.Options(metrics=("leading",), k=K)


@pytest.mark.parametrize("shape", [(96, 64), (96, 96), (160, 96)], ids=str)
def test_the_frame_is_as_accurate_as_the_reading_needs(shape):
    """However rounding falls: as many cycles as a value needs to stop growing left vectors off by up to 1e-3."""
    rng = np.random.default_rng(5)
    reference = jax.jit(lambda x: readings.reference(x, OPTIONS, "float32"))
    coordination = jax.jit(
        lambda post, base, kept: readings.measure(post, base, kept, readings.start_of(kept), OPTIONS)[0][
            "leading_coordination"
        ]
    )
    for _ in range(DRAWS):
        base = rng.normal(size=shape).astype(np.float32)
        post = (base + 0.01 * rng.normal(size=shape)).astype(np.float32)
        exact = base.astype(np.float64), post.astype(np.float64)
        _, values, right = np.linalg.svd(exact[0], full_matrices=False)
        kept = reference(jnp.asarray(base))
        block = np.linalg.qr(np.asarray(kept["right"], np.float64))[0]
        outside = right[:K].T - block @ (block.T @ right[:K].T)
        assert np.max(np.linalg.norm(outside, axis=0)) < readings.FRAME_TOLERANCE
        np.testing.assert_allclose(kept["values"][:K], values[:K], rtol=1e-5)
        tolerance = readings.FRAME_TOLERANCE * trees.coordination_slope(*exact, K)
        found = coordination(jnp.asarray(post), jnp.asarray(base), kept)
        assert float(found) == pytest.approx(trees.coordination(*exact, K), abs=tolerance)
