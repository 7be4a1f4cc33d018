"""Every column of matrices.csv against a float64 reference in NumPy and SciPy, written here."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import polarax
from polarax.kernels import noise_law as law
from polarax.measuring.program import measure_stack
from polarax.metrics import GROUPS, IDENTITY_COLUMNS, sampled_metrics
from polarax.metrics.shape import random_effective_rank
from polarax.planning.measurement import Measurement
from tests.engine.leading_reference import leading_controls, leading_reference

# Of bfloat16: bits after the leading one, and the exponent of the smallest normal number.
BFLOAT16_FRACTION_BITS = 7
BFLOAT16_SMALLEST_EXPONENT = -126

# How far a column may be from the reference: (relative, absolute). Those of nf, alpha and the
# budget are what the project promises; the rest are plain float64 arithmetic.
TOLERANCES = {
    "nf": (1e-4, 0),
    "alpha": (0, 1e-6),
    "budget_scaling": (0, 1e-6),
    "budget_coordinated": (0, 1e-6),
    "budget_discordant": (0, 1e-6),
    "budget_outside": (0, 1e-6),
    "unchanged": (1e-6, 0),  # float32
    "fit_error_null": (2e-3, 0),  # by quadrature
    "fit_error_spectrum": (2e-3, 0),
    "fit_error_spectrum_z": (2e-3, 2),  # of its thousandth, in deviations
}
OTHERWISE = (1e-5, 1e-9)


def reference(base, post, k=16):
    """Every reading of a full-rank pair stored in bfloat16, from the formulas; no polarax in it."""
    stored_base, stored_post = base, post
    base, post = base.astype(np.float64), post.astype(np.float64)
    change = post - base
    rows, cols = base.shape
    rank = min(rows, cols)
    u_base, s_base, vt_base = scipy.linalg.svd(base, full_matrices=False, lapack_driver="gesvd")
    u_post, s_post, vt_post = scipy.linalg.svd(post, full_matrices=False, lapack_driver="gesvd")
    s_change = scipy.linalg.svdvals(change)
    norm = math.sqrt(np.sum(change**2))
    readings = {
        "s_base": s_base,
        "s_post": s_post,
        "s_change": s_change,
        "drift": norm / math.sqrt(np.sum(base**2)),
        "unchanged": np.mean(stored_base.view(np.uint16) == stored_post.view(np.uint16)),
        "rounding_share": max(rounding_noise(base), rounding_noise(post)) / norm,
    }
    readings["spectral_norm_rounding"] = (
        max(rounding_noise(base), rounding_noise(post)) * (math.sqrt(rows) + math.sqrt(cols)) / math.sqrt(rows * cols)
    )

    # Scaling.
    ratio = s_post / s_base
    weight = s_base**2 / np.sum(s_base**2)
    weighted_mean = np.sum(weight * ratio)
    weighted_std = math.sqrt(np.sum(weight * (ratio - weighted_mean) ** 2))
    readings |= {
        "alpha": np.dot(s_base, s_post) / np.dot(s_base, s_base),
        "alpha_geo": math.exp(np.mean(np.log(ratio))),
        "ratio_mean": np.mean(ratio),
        "ratio_cv": np.std(ratio) / np.mean(ratio),
        "ratio_cv_energy": weighted_std / weighted_mean,
        "nss": np.linalg.norm(s_post - s_base) / np.linalg.norm(s_base),
    }

    # Rotation, by polar factors that SciPy computes.
    tall = rows >= cols
    polar_base, _ = scipy.linalg.polar(base if tall else base.T)
    polar_post, _ = scipy.linalg.polar(post if tall else post.T)
    readings["nf"] = np.linalg.norm(polar_post.T @ polar_base - np.eye(rank)) / math.sqrt(rank)

    # The drift budget, part by part.
    in_frame = u_base.T @ change @ vt_base.T
    diagonal = np.diag(np.diag(in_frame))
    symmetric, skew = (in_frame + in_frame.T) / 2, (in_frame - in_frame.T) / 2
    outside = change - u_base @ in_frame @ vt_base
    shares = {
        "scaling": np.sum(diagonal**2) / norm**2,
        "coordinated": np.sum((symmetric - diagonal) ** 2) / norm**2,
        "discordant": np.sum(skew**2) / norm**2,
        "outside": np.sum(outside**2) / norm**2,
    }
    assert sum(shares.values()) == pytest.approx(1)
    rotated = shares["coordinated"] + shares["discordant"]
    readings |= {f"budget_{part}": share for part, share in shares.items()}
    readings["coordination"] = (shares["coordinated"] - shares["discordant"]) / rotated
    readings["symmetry"] = np.sum(in_frame * in_frame.T) / np.sum(in_frame**2)
    readings["nuclear_norm_ratio"] = np.sum(s_post) / np.sum(s_base)

    # The framework's fit and the trivial models, in full.
    q_left, q_right = u_base.T @ u_post, vt_base @ vt_post.T
    signs = np.where(np.diag(q_left) + np.diag(q_right) < 0, -1, 1)
    turn, _ = scipy.linalg.polar((q_left + q_right) * signs)
    turned = (u_base @ turn * s_base) @ (turn.T @ vt_base)
    post_norm = np.linalg.norm(post)
    for name, model in (("fit_error", turned), ("fit_error_scaled", base)):
        scale = np.sum(model * post) / np.sum(model**2)
        readings[name] = np.linalg.norm(post - scale * model) / post_norm
        if name == "fit_error":
            readings["fit_alpha"] = scale
    readings["fit_error_unchanged"] = norm / post_norm

    # Overlap of the leading subspaces.
    k = min(k, rank)
    for side, q in (("left", q_left), ("right", q_right)):
        best = np.max(np.abs(q), axis=0)
        readings |= {
            f"overlap_{side}": np.sum(q[:k, :k] ** 2) / k,
            f"cosines_{side}": scipy.linalg.svdvals(q[:k, :k]),
            f"intruders_{side}": int(np.sum(best[: min(10, rank)] < 0.5)),
            f"rotation_{side}": np.abs(q),  # up to 64 singular values: a block is an entry
        }
    signs = np.sign(np.diag(q_left) + np.diag(q_right))
    readings["rotation_difference"] = np.abs(q_left * signs - q_right * signs)
    of_leading = leading_controls(s_base, norm, shape=(rows, cols), k=k)
    for name in ("cosines_left", "cosines_right", "intruders_left", "intruders_right"):
        readings[f"{name}_null"] = getattr(of_leading, name)
    readings["effective_rank_change_null"] = float(random_effective_rank((rows, cols)))

    # Shape.
    for which, values in (("base", s_base), ("post", s_post), ("change", s_change)):
        share = values / np.sum(values)
        share = share[share > 0]
        readings |= {
            f"stable_rank_{which}": np.sum(values**2) / values[0] ** 2,
            f"effective_rank_{which}": math.exp(-np.sum(share * np.log(share))),
            f"spectral_norm_{which}": values[0],
        }
    readings |= {
        "rank_base": np.linalg.matrix_rank(base),
        "rank_post": np.linalg.matrix_rank(post),
        "power_law_base": power_law_exponent(s_base),
        "power_law_post": power_law_exponent(s_post),
    }
    readings = leading_reference(base, post, k=k, known=rank) | readings
    rounding = readings["rounding_share"] * norm
    beyond = s_change > 2 * rounding * (rows**-0.5 + cols**-0.5)
    explained = np.linalg.norm(s_change[~beyond]) <= 1.5 * rounding
    readings["rank_change"] = int(beyond.sum()) if explained else np.linalg.matrix_rank(post - base)
    with jax.enable_x64(True):
        readings["nf_rounding"] = float(_nf_null(s_base, np.asarray(rounding), float(max(rows, cols))))
    readings |= closed_form_controls(readings, s_base, norm, rows, cols, k)
    return readings | placed_controls(readings, in_frame if tall else in_frame.T, s_base, norm, max(rows, cols))


def closed_form_controls(readings, s_base, norm, rows, cols, k):
    """What an isotropic change of this norm would show, and one with this one's spectrum in random directions.

    What counts degrees of freedom and the fit's control stand here; the noise law has tests of its own, against draws.
    """
    entries, rank = rows * cols, min(rows, cols)
    sd = norm / math.sqrt(entries)
    base_norm = math.sqrt(np.sum(s_base**2))
    rotations = rank * (rank - 1) / 2
    # What a rotation of both sides leaves of a pair, by a fine sum over the normal entry between them.
    normal = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000) * sd / math.sqrt(2)
    left_over = sum(
        np.mean(2 * (np.hypot((s_base[i] - s_base[j]) / 2, normal) - (s_base[j] - s_base[i]) / 2) ** 2)
        for i in range(rank)
        for j in range(i)
    )
    unfitted = (rotations + rank - 1 + entries - rank**2) * sd**2 + left_over
    controls = {
        "budget_scaling_null": rank / entries,
        "budget_coordinated_null": rotations / entries,
        "budget_discordant_null": rotations / entries,
        "budget_outside_null": 1 - rank**2 / entries,
        "coordination_null_std": 1 / math.sqrt(rotations + 1),
        "symmetry_null": 1 / rank,
        "symmetry_null_std": math.sqrt(2 * (rank**2 - 1) / (rank**2 + 2)) / rank,
        "fit_error_null": math.sqrt(unfitted / (base_norm**2 + norm**2)),
        "control_reach": s_base[0] / s_base[-1] * norm / base_norm,
    }
    nulls, spreads, own_means, own_spreads = noise_law(s_base, readings["s_change"], norm, (rows, cols), k)
    if math.isnan(spreads["fit_error"]):  # beyond first order
        controls["fit_error_null"] = math.nan
    controls |= nulls | {f"{name}_null_std": spreads[name] for name in WITH_STD}
    for name in ("nf", "alpha", "symmetry", "nuclear_norm_ratio"):
        controls[f"{name}_z"] = (readings[name] - controls[f"{name}_null"]) / controls[f"{name}_null_std"]
    controls["coordination_z"] = readings["coordination"] / controls["coordination_null_std"]
    controls["nf_excess"] = readings["nf"] / controls["nf_null"]
    everything = readings | controls
    for name in sampled_metrics(GROUPS):
        mean, std = everything.get(f"{name}_null", 0.0), own_spreads[name]
        mean = math.nan if math.isnan(std) else own_means.get(name, mean)
        largest = max(mean, 1 + (norm / base_norm) ** 2 / 2)
        nearest = min(max(readings[name], mean), largest) if name == "alpha" else mean
        distance = (readings[name] - nearest) / std if std > 1e-15 else math.nan
        controls |= {f"{name}_spectrum": mean, f"{name}_spectrum_std": std, f"{name}_spectrum_z": distance}
    controls["control"] = "law"
    return controls


def placed_controls(readings, in_frame, s_base, norm, longer):
    """What a change that lies in the base's directions as this one does would show; in_frame is of the tall matrix."""
    rank = len(s_base)
    of_rows, of_cols = np.sum(in_frame**2, axis=1), np.sum(in_frame**2, axis=0)
    inside = np.sum(of_rows)
    noise = norm**2 / (rank * longer)

    def turn(variances, outside):
        """Mean square and deviation of nf, times the root of the rank, by a gamma distribution."""
        pairs = (variances + variances.T) / np.add.outer(s_base, s_base) ** 2
        np.fill_diagonal(pairs, 0)
        mean = np.sum(pairs) + np.sum((1 - s_base / np.sqrt(s_base**2 + outside)) ** 2)
        shape = mean**2 / (4 * np.sum(pairs**2))
        t = 1 / 4 + 1 / (32 * shape + 1 / (1 / math.pi - 1 / 4))
        return mean, math.sqrt(mean * t / (shape + t))

    mean, std = turn(np.outer(of_rows, of_cols) / inside, (norm**2 / inside - 1) * of_cols)
    mean_of_noise, std_of_noise = turn(np.full((rank, rank), noise), (longer - rank) * noise)
    last = np.mean(of_rows[-max(rank // 4, 1) :]) * (longer - rank)
    return {
        "nf_placed": readings["nf_null"] * math.sqrt(mean / mean_of_noise),
        "nf_placed_std": readings["nf_null_std"] * std / std_of_noise,
        "budget_outside_placed": last / (inside + last),
    }


# Metrics whose control has a deviation by the law.
WITH_STD = (
    *("nf", "alpha", "ratio_cv", "ratio_cv_energy", "nss", "nuclear_norm_ratio", "fit_error"),
    *("budget_scaling", "budget_outside"),
)


def noise_law(s_base, s_change, norm, shape, k):
    """What the law gives in float64: means by column, spreads by metric, and both of the change's spectrum."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _noise_law(s_base, s_change, np.asarray(norm), float(max(shape)), k=k))


@functools.partial(jax.jit, static_argnames=("k",))
def _noise_law(s_base, s_change, norm, rows, k):
    shape = (rows, s_base.shape[-1])  # of the matrix or its transpose: no left or right is looked at
    polar, values = law.polar_law(s_base, norm, shape=shape), law.values_law(s_base, norm, shape=shape)
    spectrum = law.columns_of_law(s_base, norm, values, shape=shape)
    own = law.spectrum_law(s_base, s_change, shape=shape)
    own_means = {"nf": own.nf, "nuclear_norm_ratio": own.nuclear_norm_ratio}
    found = law.spreads_at_any_size(s_base, norm, s_change, shape=shape, top_k=k)
    spreads, own_spreads = (spreads._asdict() for spreads, _ in found)
    of_spectrum = ("alpha", "alpha_geo", "ratio_mean", "ratio_cv", "ratio_cv_energy", "nss")
    nulls = {f"{name}_null": getattr(spectrum, name) for name in of_spectrum}
    nulls |= {
        "nf_null": polar.nf,
        "nuclear_norm_ratio_null": polar.nuclear_norm_ratio,
        "effective_rank_post_null": spectrum.effective_rank,
        "power_law_post_null": spectrum.exponent,
        "s_post_null": values.values,
        "s_post_null_std": values.std,
    }
    return nulls, spreads, own_means, own_spreads


@jax.jit
def _nf_null(s_base, norm, rows):
    return law.polar_law(s_base, norm, shape=(rows, s_base.shape[-1])).nf


def rounding_noise(x):
    """Norm of errors uniform within half a unit in the last place of bfloat16."""
    total = 0.0
    for value in np.abs(x).ravel():
        if value:
            exponent = max(math.floor(math.log2(value)), BFLOAT16_SMALLEST_EXPONENT)
            total += 4.0 ** (exponent - BFLOAT16_FRACTION_BITS) / 12
    return math.sqrt(total)


def power_law_exponent(values):
    """Clauset, Shalizi and Newman (2009): every start is tried, the smallest KS distance wins."""
    eigenvalues = np.sort(values**2)
    best = (math.inf, math.nan)
    for start in range(len(eigenvalues) - 1):
        tail = eigenvalues[start:]
        exponent = 1 + len(tail) / np.sum(np.log(tail / tail[0]))
        model = 1 - (tail / tail[0]) ** (1 - exponent)
        distance = np.max(np.abs(model - np.arange(len(tail)) / len(tail)))
        best = min(best, (distance, exponent))
    return best[1]


@pytest.fixture(scope="module")
def expected(llama):
    return {name: reference(*pair) for name, pair in llama.matrices.items()}


def test_the_reference_covers_every_column(llama_run, expected):
    columns = set(llama_run.frame().columns) - set(IDENTITY_COLUMNS)
    arrays = {
        "s_base",
        "s_post",
        "s_post_null",
        "s_post_null_std",
        "s_change",
        "cosines_left",
        "cosines_right",
        "cosines_left_null",
        "cosines_right_null",
    }
    arrays |= {f"rotation_{which}" for which in ("left", "right", "difference")}
    for readings in expected.values():
        assert columns | arrays == set(readings)


def test_the_pair_has_something_of_everything(expected):
    readings = list(expected.values())
    excess = [one["nf_excess"] for one in readings if one["control_reach"] <= 1]
    assert min(excess) < 0.1 and any(0.9 < one < 1.1 for one in excess)
    assert any(one["coordination"] > 0.9 for one in readings)
    assert any(one["coordination"] < -0.9 for one in readings)
    assert any(one["intruders_left"] > 0 for one in readings)
    assert any(one["unchanged"] > 0.5 for one in readings)
    assert {one["control_reach"] <= 1 for one in readings} == {True, False}


def test_every_column_agrees_with_the_reference(llama_run, expected):
    frame = llama_run.frame().set_index("name")
    assert set(frame.index) == set(expected)
    wrong = []
    for name, readings in expected.items():
        for column in frame.columns.intersection(list(readings)):
            found, wanted = frame.loc[name, column], readings[column]
            relative, absolute = TOLERANCES.get(column, OTHERWISE)
            if column == "control" or isinstance(wanted, (int, np.integer)):
                agrees = found == wanted
            elif math.isnan(wanted):
                agrees = math.isnan(found)
            else:
                agrees = abs(found - wanted) <= absolute + relative * abs(wanted)
            if not agrees:
                wrong.append(f"{name} {column}: {found!r}, expected {wanted!r}")
    assert not wrong, "\n".join(wrong)


def test_spectra_agree_with_the_reference(llama_run, expected):
    for name, readings in expected.items():
        for found, wanted in zip(
            (*llama_run.spectra(name), llama_run.array(name, "s_change")),
            (readings["s_base"], readings["s_post"], readings["s_change"]),
            strict=True,
        ):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9 * wanted[0])
            assert np.all(np.diff(found) <= 0)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_spectra_under_noise_are_those_of_draws(llama, llama_run, name):
    base, post = (np.asarray(x, np.float64) for x in llama.matrices[name])
    sd = np.linalg.norm(post - base) / math.sqrt(base.size)
    noise = sd * np.random.default_rng(0).normal(size=(400, *base.shape))
    draws = np.linalg.svd(base + noise, compute_uv=False)
    mean, std = (llama_run.array(name, kind) for kind in ("s_post_null", "s_post_null_std"))
    off = np.abs(mean - draws.mean(axis=0)) / sd
    assert off.max() < 0.25 and np.median(off) < 0.15
    assert 0.6 < np.median(std / draws.std(axis=0)) < 1.2


def test_principal_angles_agree_with_the_reference(llama_run, expected):
    for name, readings in expected.items():
        for kind in ("cosines_left", "cosines_right"):
            found = llama_run.array(name, kind)
            np.testing.assert_allclose(found, readings[kind], atol=1e-9)


def test_pictures_of_the_rotations_agree_with_the_reference(llama_run, expected):
    for kind in ("rotation_left", "rotation_right", "rotation_difference"):
        found = dict(llama_run.arrays(kind))
        assert set(found) == set(expected)
        for name, readings in expected.items():
            np.testing.assert_allclose(found[name], readings[kind], atol=1e-5, err_msg=f"{name} {kind}")
            np.testing.assert_array_equal(found[name], llama_run.array(name, kind))


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.exhaustive), 3, 100])
def test_top_k_is_the_size_of_the_leading_subspaces(llama, k):
    name = "model.layers.1.self_attn.k_proj.weight"  # 24 singular values
    run = polarax.compare(llama.base, llama.post, include=f"^{name}$", metrics="overlap", top_k=k, progress=False)
    readings, row = reference(*llama.matrices[name], k=k), run.frame().iloc[0]
    assert len(run.array(name, "cosines_left")) == min(k, 24)
    for side in ("left", "right"):
        assert row[f"overlap_{side}"] == pytest.approx(readings[f"overlap_{side}"], abs=1e-9)
        np.testing.assert_allclose(run.array(name, f"cosines_{side}"), readings[f"cosines_{side}"], atol=1e-9)


@pytest.mark.parametrize("role", ["k", pytest.param("q", marks=pytest.mark.exhaustive)])
def test_float32_works_too_with_looser_bounds(llama, role):
    run = polarax.compare(llama.base, llama.post, dtype="float32", layers="0", roles=role, progress=False)
    frame = run.frame()
    assert len(frame) == 1
    for _, row in frame.iterrows():
        readings = reference(*llama.matrices[row["name"]])
        assert row["nf"] == pytest.approx(readings["nf"], rel=1e-3, abs=1e-5)
        assert row["alpha"] == pytest.approx(readings["alpha"], abs=1e-5)
        assert row["drift"] == pytest.approx(readings["drift"], rel=1e-5)
        for part in ("scaling", "coordinated", "discordant", "outside"):
            assert row[f"budget_{part}"] == pytest.approx(readings[f"budget_{part}"], abs=1e-4)
        s_base, s_post = run.spectra(row["name"])
        assert s_base.dtype == s_post.dtype == np.float64  # as numbers, whatever they were made in
        largest = readings["s_base"][0]
        np.testing.assert_allclose(s_base, readings["s_base"], atol=1e-6 * largest)
        np.testing.assert_allclose(s_post, readings["s_post"], atol=1e-6 * largest)
        assert np.all(s_base == s_base.astype(np.float32))  # no float64 in between


def test_a_very_tall_matrix_takes_memory_of_its_own_size():
    """An embedding has many rows: nothing of m x m is made of it, nor copies in the working dtype."""
    shape = (1, 50_000, 32)
    with jax.enable_x64(True):
        stack = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        program = measure_stack.lower(stack, (stack,), measurement=Measurement(), batched=False).compile()
    stored = 2 * 2 * math.prod(shape)
    assert program.memory_analysis().temp_size_in_bytes < 4 * stored
