"""The controls that only the tracker has, against sampled random changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.tracking import readings

DRAWS = 200
K = 4


def _sampled(shape, drift):
    """Mean of every reading over draws of an isotropic change, and what the tracker says of it."""
    rng = np.random.default_rng(0)
    values = np.concatenate([[8, 7, 6, 5], np.linspace(3, 0.5, min(shape) - 4)])
    left, right = (np.linalg.qr(rng.normal(size=(size, len(values))))[0] for size in shape)
    base = (left * values) @ right.T
    sd = drift * np.linalg.norm(base) / np.sqrt(base.size)
    options = readings.Options(metrics=("shape", "overlap", "leading", "scaling"), k=K)
    jax_base = jnp.asarray(base, jnp.float32)
    kept = jax.jit(lambda x: readings.reference(x, options, "float32"))(jax_base)
    start = readings.start_of(kept)
    measure = jax.jit(lambda post: readings.measure(post, jax_base, kept, start, options)[0])
    draws = [measure(jnp.asarray(base + sd * rng.normal(size=shape), jnp.float32)) for _ in range(DRAWS)]
    return {name: np.array([draw[name] for draw in draws]) for name in draws[0]}


@pytest.mark.parametrize("shape", [(30, 30), (60, 30)], ids=str)
def test_controls_are_what_random_changes_give(shape):
    found = _sampled(shape, 0.05)

    def mean(name):
        return np.nanmean(found[name])

    error = mean("spectral_norm_null_std") / np.sqrt(DRAWS)
    assert mean("spectral_norm") == pytest.approx(mean("spectral_norm_null"), abs=4 * error)
    assert np.std(found["spectral_norm"]) == pytest.approx(mean("spectral_norm_null_std"), rel=0.2)
    assert mean("stable_rank") == pytest.approx(mean("stable_rank_null"), rel=0.01)
    for side in ("left", "right"):
        assert 1 - mean(f"overlap_{side}") == pytest.approx(1 - mean(f"overlap_{side}_null"), rel=0.15)
    for part in ("scaling", "coordinated", "discordant"):
        spread = np.std(found[f"leading_{part}"]) / np.sqrt(DRAWS)
        assert mean(f"leading_{part}") == pytest.approx(mean(f"leading_{part}_null"), abs=4 * spread)
    assert np.std(found["leading_coordination"]) == pytest.approx(mean("leading_coordination_null_std"), rel=0.2)
    assert np.abs(np.mean(found["alpha_z"])) < 4 / np.sqrt(DRAWS) + 0.1
