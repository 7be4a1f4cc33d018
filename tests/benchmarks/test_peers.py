"""The peers' scripts compute the same quantities as polarax."""

import ml_dtypes
import numpy as np
import pytest

import polarax.kernels
from benchmarks import peers
from benchmarks.matrices import weight_pairs

SCALARS = (
    "nf", "budget_scaling", "budget_coordinated", "budget_discordant", "budget_outside",
    "overlap_left", "overlap_right",
)  # fmt: skip


def _pair(shape, dtype=np.float64):
    base, post = weight_pairs(*shape, 1, dtype=np.dtype(dtype), seed=4)
    return base[0], post[0]


@pytest.mark.parametrize("analyse", [peers.script, peers.careful_script])
@pytest.mark.parametrize("shape", [(32, 32), (48, 24), (24, 48)], ids=str)
def test_script_agrees_with_polarax(shape, analyse):
    base, post = _pair(shape, np.float32)
    readings = analyse(peers.Library(), base.astype(np.float64), post.astype(np.float64))
    frames = polarax.kernels.frames(base, post)
    budget = polarax.kernels.budget_of_frames(frames)
    overlap = polarax.kernels.overlap_of_frames(frames, k=peers.TOP_K)
    wanted = {
        "nf": polarax.kernels.rotation_difference(frames),
        **{f"budget_{part}": getattr(budget, part) for part in budget._fields[:4]},
        "overlap_left": overlap.left,
        "overlap_right": overlap.right,
    }
    for name in SCALARS:
        assert readings[name] == pytest.approx(float(wanted[name]), rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(readings["s_base"], frames.s_base, rtol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (48, 24), (24, 48)], ids=str)
def test_full_script_agrees_with_polarax(shape):
    base, post = _pair(shape, np.float32)
    readings = peers.full_script(peers.Library(), base.astype(np.float64), post.astype(np.float64))
    tall = (base, post) if shape[0] >= shape[1] else (base.T, post.T)
    frames = polarax.kernels.frames(*tall, change_values=True)
    scaling = polarax.kernels.scaling(frames.s_base, frames.s_post)
    budget = polarax.kernels.budget_of_frames(frames)
    fit = polarax.kernels.fit_of_frames(frames)
    wanted = {
        "nf": polarax.kernels.rotation_difference(frames),
        "alpha": scaling.alpha,
        "ratio_cv": scaling.ratio_cv,
        "nss": scaling.nss,
        **{f"budget_{part}": getattr(budget, part) for part in budget._fields[:4]},
        "fit_alpha": fit.alpha,
        "fit_error": fit.error,
        "drift": fit.error_unchanged * np.linalg.norm(post) / np.linalg.norm(base),
        "stable_rank_change": polarax.kernels.stable_rank(frames.s_change),
        "effective_rank_change": polarax.kernels.effective_rank(frames.s_change),
    }
    for name, value in wanted.items():
        assert readings[name] == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(readings["s_change"], frames.s_change, rtol=1e-3)


def test_jnp_script_agrees_with_numpy():
    pair = _pair((40, 20), np.float32)
    jnp = peers.Jnp()
    found = peers.script(jnp, *(jnp.put(side) for side in pair))
    wanted = peers.script(peers.Library(), *pair)
    for name in SCALARS:
        assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-4), name


def test_torch_script_agrees_with_numpy():
    pytest.importorskip("torch")
    pair = _pair((20, 40), ml_dtypes.bfloat16)
    torch = peers.Torch(1)
    tensors = [torch.put(side) for side in pair]
    wanted = peers.script(peers.Library(), *pair)
    for analyse in (peers.script, peers.careful_script):
        found = analyse(torch, *tensors)
        for name in SCALARS:
            assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-4), name


def test_kernels_of_peers_agree_with_the_script():
    base, post = _pair((30, 18))
    library = peers.Library()
    readings = peers.script(library, base, post)
    assert peers.rotation_difference(library, base, post) == pytest.approx(readings["nf"])
    scaling, coordinated, discordant = peers.drift_budget(library, base, post)
    assert scaling == pytest.approx(readings["budget_scaling"])
    assert coordinated == pytest.approx(readings["budget_coordinated"])
    assert discordant == pytest.approx(readings["budget_discordant"])
    factor = peers.polar(library, base)
    np.testing.assert_allclose(factor.T @ factor, np.eye(18), atol=1e-12)


def test_libraries_are_those_asked_for():
    pytest.importorskip("scipy")
    names = [library.name for library in peers.libraries(("numpy", "scipy", "jnp"), 1)]
    assert names == ["numpy", "scipy gesdd", "scipy gesvd", "jnp"]
    assert list(peers.libraries((), 1)) == []
    assert [name for name, *_ in peers.scripts(("numpy", "scipy", "jnp"), 1)] == ["numpy", "jnp"]
