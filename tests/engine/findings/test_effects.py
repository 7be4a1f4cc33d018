"""What effects are judged by: controls against sampled changes, limits against SciPy's quantiles."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from polarax.findings.effects import DEVIATIONS, chance_of, find_effects, z_limit_of_draws
from polarax.metrics import effects_told
from polarax.metrics.shape import random_effective_rank
from tests.engine.planted import haar

DRAWS = 300


@pytest.mark.parametrize("shape", [(48, 48), (96, 48), (48, 96), (300, 60)])
def test_the_effective_rank_of_a_random_matrix(shape):
    s = np.linalg.svd(np.random.default_rng(0).normal(size=(20, *shape)), compute_uv=False)
    shares = s / s.sum(axis=-1, keepdims=True)
    sampled = np.exp(-np.sum(shares * np.log(shares), axis=-1))
    assert float(random_effective_rank(shape)) == pytest.approx(sampled.mean(), rel=0.02)


@pytest.mark.parametrize("draws", [2, 3, 4, 8, 20, 30, 100, 1000])
def test_the_limit_of_few_draws_is_as_rare_as_that_of_many(draws):
    quantile = scipy.stats.t.isf(scipy.stats.norm.sf(DEVIATIONS), draws - 1)
    excess = z_limit_of_draws(draws) / (quantile * np.sqrt((draws + 1) / (draws - 1)))
    assert excess == pytest.approx(1, rel=1e-12)


def test_from_one_draw_nothing_can_be_said():
    assert z_limit_of_draws(1) == np.inf


@pytest.mark.parametrize("power", [0.0, 0.7, np.inf], ids=["flat", "decaying", "one direction"])
def test_the_closed_forms_cover_changes_of_few_directions(power):
    """Sampled changes with one spectrum in random directions spread by no more than the deviations say."""
    frame = pd.DataFrame(_sampled_changes(np.random.default_rng(3), 96, 48, power))
    for metric in ("budget_scaling", "budget_outside", "coordination", "nf"):
        control = chance_of(frame, metric)
        z = (frame[metric] - control.low) / control.std
        assert (control.low == control.high).all()
        assert abs(z.mean()) < 0.3 and 0.15 < z.std() < 1.15, metric
    assert find_effects(frame.drop(columns=["effective_rank_change"])).empty


def test_isotropic_deviations_would_not_cover_them():
    frame = pd.DataFrame(_sampled_changes(np.random.default_rng(3), 96, 48, np.inf))
    assert ((frame["nf"] - frame["nf_null"]) / frame["nf_null_std"]).std() > 3


def _sampled_changes(rng, rows, cols, power):
    """Rows of a table for changes of the base diag(s) over zeros, whose frame is the identity; to first order."""
    s = np.geomspace(10, 1, cols)
    sums, off = s[:, None] + s, ~np.eye(cols, dtype=bool)
    values = np.arange(1, cols + 1.0) ** -power
    values /= np.linalg.norm(values)
    kept = values > 0
    shares = values / values.sum()
    variances = np.where(off, 2 / (rows * cols) / sums**2, 0)
    nf_null = np.sqrt(variances.sum() / cols)
    pairs = cols * (cols - 1) / 2
    for _ in range(DRAWS):
        change = (haar(rng, rows, cols) * values) @ haar(rng, cols, cols).T
        inside = change[:cols]
        coordinated = np.sum((inside + inside.T)[off] ** 2) / 4
        discordant = np.sum((inside - inside.T)[off] ** 2) / 4
        yield {
            "rows": rows,
            "cols": cols,
            "status": "ok",
            "control": "closed form",
            "stable_rank_change": 1 / values[0] ** 2,
            "effective_rank_change": np.exp(-np.sum(shares[kept] * np.log(shares[kept]))),
            "effective_rank_base": cols,
            "budget_scaling": np.sum(np.diag(inside) ** 2),
            "budget_scaling_null": 1 / rows,
            "budget_outside": 1 - np.sum(inside**2),
            "budget_outside_null": 1 - cols / rows,
            "coordination": (coordinated - discordant) / (coordinated + discordant),
            "coordination_null_std": 1 / np.sqrt(pairs + 1),
            "nf": np.linalg.norm((inside - inside.T) / sums) / np.sqrt(cols),
            "nf_null": nf_null,
            "nf_null_std": np.sqrt(4 * np.sum(variances**2)) / (2 * nf_null * cols),
        }


@pytest.mark.parametrize("products", [1, 2, 4, 16, 256])
def test_alpha_of_few_directions_is_as_rare_as_a_normal_number(products):
    """A sum of k products of two normal numbers is sqrt(G) Z, G a chi-square of k degrees: its tail by quadrature."""
    frame = pd.DataFrame(
        {
            **{"status": ["ok"], "control": "law", "alpha": 1.1, "alpha_null": 1.0, "alpha_null_std": 1e-3},
            **{"stable_rank_base": float(products), "stable_rank_change": 1.0},
        }
    )
    limit = DEVIATIONS * chance_of(frame, "alpha").tail.item()
    log_g = np.linspace(-12, 9, 8001)

    def tail(z):
        beyond = 2 * scipy.stats.norm.sf(z * np.sqrt(products) * np.exp(-log_g / 2))
        return np.trapezoid(scipy.stats.chi2.pdf(np.exp(log_g), products) * np.exp(log_g) * beyond, log_g)

    assert tail(limit) < 2 * scipy.stats.norm.sf(DEVIATIONS) < tail(0.9 * limit)


def test_alpha_has_no_longer_tail_where_the_singular_values_are_not_known():
    frame = pd.DataFrame(
        {"status": ["ok"], "control": "law", "alpha": 1.1, "alpha_null": 1.0, "alpha_null_std": [1e-3]}
    )
    assert chance_of(frame, "alpha").tail.item() == 1


def test_alpha_may_be_as_large_as_singular_values_that_stay_where_they_are_make_it():
    """A change of few directions moves them less than isotropic noise: alpha - 1 is then drift^2 / 2, nearly."""
    frame = pd.DataFrame({"status": ["ok"], "control": "law", "drift": 0.5, "alpha_null": 1.09, "alpha_null_std": 1e-3})
    assert chance_of(frame, "alpha").high.item() == 1.125


@pytest.mark.parametrize(("metric", "mean"), [("alpha", 1.0), ("coordination", 0.0)])
def test_of_few_directions_draws_are_judged_with_their_longer_tail_too(metric, mean):
    """Draws say how far changes of one direction spread, and that what lies beyond is not as rare as of many."""
    draws = 100
    away = mean + 1.5 * z_limit_of_draws(draws) * 0.1
    drawn = {metric: away, f"{metric}_spectrum": mean, f"{metric}_spectrum_std": 0.1}
    rows = {"status": ["ok"] * 2, "control": "draws", "stable_rank_base": 300.0, "stable_rank_change": [1.0, 300.0]}
    frame = pd.DataFrame(rows | drawn)
    if metric == "alpha":  # of a base and a change of one direction each
        frame["stable_rank_base"] = frame["stable_rank_change"]
    assert list(find_effects(frame, draws)["row"]) == [1]
    assert chance_of(frame, metric).low.tolist() == [mean, mean]


SAMPLED = [metric.name for metric in effects_told() if metric.control is not None and metric.control.sampled]


@pytest.mark.parametrize("metric", SAMPLED)
def test_where_there_are_draws_they_are_judged_by(metric):
    """Of every metric that can be sampled; whatever its closed forms say."""
    drawn = {f"{metric}_spectrum": 0.4, f"{metric}_spectrum_std": 0.01}
    closed = {"status": ["ok"], "rows": 64, "cols": 64, "drift": 0.1, f"{metric}_null": 0.7, f"{metric}_null_std": 0.2}
    control = chance_of(pd.DataFrame(closed | drawn | {"control": "draws"}), metric)
    assert (control.low.item(), control.high.item(), control.std.item()) == (0.4, 0.4, 0.01)
    kept = chance_of(pd.DataFrame(closed | drawn | {"control": "draws", f"{metric}_spectrum_std": np.nan}), metric)
    assert kept.std.item() != 0.01
