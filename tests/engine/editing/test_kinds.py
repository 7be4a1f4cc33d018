"""What is measured of every edit, against the singular value decompositions of the edited matrices by NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.editing.kinds import KINDS, Surroundings
from polarax.kernels.edits.maps import starting_maps
from polarax.kernels.edits.measure import measure_maps
from polarax.kernels.edits.tall_pair import gram_of, tall_pair
from polarax.kernels.edits.turned import aligned
from tests.kernels.matrices import drifted, generator, matrix, with_spectrum

PART = 0.7


@jax.jit
def plans(base, post, signs, factor):
    """(maps, measures at full strength, maps, measures at a part of it) of every kind, from one decomposition."""
    found = {}
    pair, square = tall_pair(base, post, dtype="float64"), base.shape[0] == base.shape[1]
    near, start = aligned(pair), functools.partial(starting_maps, pair)
    around = Surroundings(False, square, factor, None, functools.partial(gram_of, post, pair))
    for kind in KINDS.values():
        if kind.plan is None:
            continue
        for random in (False, True) if "signs" in kind.options else (False,):
            plan = kind.plan(near if kind.needs_alignment else pair, around._replace(signs=signs if random else None))
            between = plan.maps.between(start(kind.start), PART)
            at = (lambda _, maps=plan.maps: measure_maps(pair, maps)) if plan.at is None else plan.at()
            full = at(jnp.float64(1)) if plan.at_full is None else plan.at_full()
            found[kind.name, random] = plan.maps, full, between, None if plan.at is None else at(jnp.float64(PART))
    return found


def alpha_and_nf(before, after, floor):
    """By their definition, over what both determine."""
    (u, s, vt), (u_after, s_after, vt_after) = (np.linalg.svd(x, full_matrices=False) for x in (before, after))
    one, other = s > floor * s[0], s_after > floor * s_after[0]
    difference = (u[:, one].T @ u_after[:, other]) - vt[one] @ vt_after[other].T
    return s @ s_after / (s @ s), np.linalg.norm(difference) / np.sqrt(other.sum())


def pairs():
    rng = generator("measures of edits")
    for shape in ((24, 24), (40, 24)):
        base = matrix("llm_like", shape, "float64")
        yield shape, "near", base, drifted(base, 0.05)
        yield shape, "far", base, drifted(base, 1.5)
        yield shape, "scaled with a negative part", base, drifted(-0.5 * base, 0.05)
        deficient = with_spectrum(np.r_[np.linspace(2, 1, 16), np.zeros(8)], *shape, rng)
        yield shape, "base of lower rank", deficient, matrix("separated", shape, "float64")
        repeated = with_spectrum(np.repeat([3.0, 2.0, 1.0], 8), *shape, rng)
        yield shape, "equal values", repeated, drifted(repeated, 0.05)


@pytest.mark.parametrize(
    ("shape", "name", "base", "post"), [pytest.param(*pair, id=f"{pair[0][0]}-{pair[1]}") for pair in pairs()]
)
def test_measures_are_those_of_the_edited_matrix(shape, name, base, post):
    signs, factor = np.where(np.arange(shape[1]) % 3, 1.0, -1.0), 1.25 if name == "near" else -0.8
    with jax.enable_x64(True):
        found = jax.device_get(plans(base, post, signs, factor))
    for kind, (maps, full, between, part) in found.items():
        for of, measures in ((maps, full), (between, part)):
            if measures is None:
                continue
            edited = sum(x @ m for x, m in zip((base, post), of, strict=True) if m is not None)
            expected = [alpha_and_nf(x, edited, 1e-7) for x in (base, post)]
            alphas, distances = zip(*expected, strict=True)
            np.testing.assert_allclose(measures[:2], alphas, rtol=1e-7, err_msg=str(kind))
            # Errors of float32 products, and of small vectors from Gram matrices.
            np.testing.assert_allclose(measures[2:], distances, rtol=1e-4, atol=3e-6, err_msg=str(kind))
