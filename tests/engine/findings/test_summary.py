"""Model level: distributions by role, statuses and reasons counted."""

import numpy as np
import pandas as pd
import pytest

from polarax.findings.effects import thresholds
from polarax.findings.summary import summarise


def frame(**columns):
    count = len(next(iter(columns.values())))
    fixed = {
        "name": [f"w{i}" for i in range(count)],
        "layer": range(count),
        "role": ["q"] * count,
        "expert": [None] * count,
        "rows": [4] * count,
        "cols": [4] * count,
        "dtype_base": ["float32"] * count,
        "dtype_post": ["float32"] * count,
        "status": ["ok"] * count,
        "control_reach": [0.1] * count,
        "control": ["closed form"] * count,
    }
    return pd.DataFrame(fixed | columns)


def skipped(*reasons):
    return pd.DataFrame({"name": [f"s{i}" for i in range(len(reasons))], "reason": list(reasons)}, dtype=str)


def test_the_distribution_of_every_metric_over_a_role():
    values = [0.1, 0.7, 0.4, 0.2]
    roles = summarise(frame(drift=values, role=["q", "q", "q", "o"]), skipped())["roles"]
    assert list(roles) == ["q", "o"]
    assert roles["q"]["matrices"] == 3 and roles["o"]["matrices"] == 1
    assert roles["q"]["drift"] == {
        "count": 3,
        "mean": pytest.approx(np.mean(values[:3])),
        "std": pytest.approx(np.std(values[:3])),
        "min": 0.1,
        "median": 0.4,
        "max": 0.7,
    }
    assert roles["o"]["drift"]["std"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_not_counted(value):
    drift = summarise(frame(drift=[0.1, value, 0.3]), skipped())["roles"]["q"]["drift"]
    assert drift["count"] == 2 and drift["mean"] == pytest.approx(0.2) and drift["max"] == 0.3


def test_a_metric_that_no_matrix_has():
    described = summarise(frame(drift=[np.nan, np.nan]), skipped())["roles"]["q"]["drift"]
    assert described["count"] == 0 and np.isnan(described["median"])


def test_statuses_are_counted_by_kind():
    statuses = ["ok", "ok", "not finite: 3 in base", "not finite: 1 in post", "zero base", "rank 3 of 4 in post"]
    counted = summarise(frame(status=statuses), skipped())["status"]
    assert counted == {"ok": 2, "not finite": 2, "zero": 1, "rank-deficient": 1}


def test_reasons_are_counted_without_their_particulars():
    reasons = ["1-D: not a matrix", "1-D: not a matrix", "only in base"]
    assert summarise(frame(drift=[0.1]), skipped(*reasons))["skipped"] == {"1-D: not a matrix": 2, "only in base": 1}


def test_matrices_whose_control_is_rough_are_counted():
    controls = ["closed form", "out of range", "out of range", ""]
    assert summarise(frame(control=controls), skipped())["roles"]["q"]["out_of_range"] == 2


def test_the_reading_comes_with_what_it_rests_on():
    summary = summarise(frame(status=["unchanged"]), skipped())
    assert summary["thresholds"] == thresholds()
    assert summary["reading"][0] == "How much: the one matrix did not change at all."


def test_layers_have_the_headline_metrics():
    summary = summarise(frame(drift=[0.1, 0.3, 0.2], layer=[0, 0, 1], rank_base=[4, 4, 4]), skipped())
    assert list(summary["layers"]) == ["0", "1"]
    assert summary["layers"]["0"]["matrices"] == 2
    assert summary["layers"]["0"]["drift"]["mean"] == pytest.approx(0.2)
    assert "rank_base" not in summary["layers"]["0"] and "rank_base" in summary["roles"]["q"]


def test_what_stands_out_and_what_is_flagged_is_counted():
    summary = summarise(
        frame(
            role=["q", "q", "o", "o"],
            coordination=[0.5, 0.0, -0.5, 0.9],
            coordination_null_std=[0.01] * 4,
            rounding_share=[0.1, 0.1, 0.1, 0.9],
            nf=[0.1] * 4,
            nf_null=[0.1] * 4,
            nf_null_std=[0.01] * 4,
            control=["out of range", "closed form", "closed form", "out of range"],
        ),
        skipped(),
    )
    assert summary["effects"] == {"coordinated": {"q": 1}, "discordant": {"o": 1}}
    assert summary["flagged"] == {"rounding": 1, "nf_unjudged": 1}
    assert [summary["roles"][role]["named"] for role in ("q", "o")] == [1, 1]
    assert [summary["roles"][role]["rounding"] for role in ("q", "o")] == [0, 1]


def test_the_limit_of_a_sampled_control_is_told():
    assert "z_sampled" not in summarise(frame(drift=[0.1]), skipped())["thresholds"]
    assert summarise(frame(drift=[0.1]), skipped(), draws=30)["thresholds"]["z_sampled"] > 6
