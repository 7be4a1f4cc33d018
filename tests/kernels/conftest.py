"""What holds for every test of the kernels."""

import jax
import pytest


@pytest.fixture(autouse=True)
def global_precision_is_left_alone():
    """float64 is used in scope: no kernel and no test may leave the global flag changed."""
    before = jax.config.jax_enable_x64
    yield
    assert jax.config.jax_enable_x64 == before
