"""The output-projection signature, against the same numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from polarax.findings.reading import read_frame
from polarax.findings.signature import output_signature

DRIFT = 0.01
STD = 1e-4


def layers(output, others, *, drift=DRIFT, std=STD, experts=1):
    """A frame of o, q and up with these alphas, one of each in a layer; `experts` of up."""
    rows = []
    for layer, (of_o, of_rest) in enumerate(zip(output, others, strict=True)):
        roles = {"o": of_o, "q": of_rest} | {f"up {expert}": of_rest for expert in range(experts)}
        for role, alpha in roles.items():
            rows.append(
                {
                    "name": f"{layer}.{role}",
                    "layer": layer,
                    "role": role.split()[0],
                    "expert": None,
                    "status": "ok",
                    "alpha": alpha,
                    "alpha_null": 1 + drift**2 / 2,
                    "alpha_null_std": std,
                    "control": "closed form",
                }
            )
    return pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"})


def sentence(frame):
    (found,) = [one for one in read_frame(frame).sentences if one.startswith("o against") or "above the other" in one]
    return found


def test_the_difference_its_spread_and_its_control():
    output, others = [1.012, 1.013, 1.015, 1.012], [1.0, 1.0004, 0.9996, 1.0]
    found = output_signature(layers(output, others))
    differences = np.subtract(output, others)
    assert found.layers == 4 and found.distinct
    assert found.difference == pytest.approx(differences.mean())
    assert found.spread == pytest.approx(differences.std())
    # o has one standard deviation, the mean of the two other roles 1 / sqrt 2 of it; four layers halve it.
    assert found.control_std == pytest.approx(STD * np.sqrt(1.5) / 2)
    assert found.z == pytest.approx(found.difference / found.control_std)
    assert found.spreads == pytest.approx(found.difference / found.spread)


def test_the_sentence_has_all_of_them():
    assert sentence(layers([1.013] * 4, [1.0] * 4)) == (
        "o: scaled 1.3% above the other roles of the same layers, 212 standard deviations of the control "
        "(0 ± 0.0061%); spread 0% over 4 layers."
    )


def test_chance_agrees_with_its_standard_deviation():
    rng = np.random.default_rng(0)
    draws = [output_signature(_noisy(rng)) for _ in range(150)]
    assert np.std([found.z for found in draws]) == pytest.approx(1, rel=0.15)
    assert np.mean([found.difference for found in draws]) == pytest.approx(0, abs=2e-5)
    assert not any(found.distinct for found in draws)


def _noisy(rng):
    frame = layers([1.0] * 6, [1.0] * 6)
    return frame.assign(alpha=frame["alpha_null"] + STD * rng.normal(size=len(frame)))


def test_experts_count_as_one_role():
    one, many = (output_signature(layers([1.01] * 3, [1.0, 1.001, 1.002], experts=n)) for n in (1, 64))
    assert many.difference == pytest.approx(one.difference)
    assert many.control_std < one.control_std


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (layers([1.004] * 4, [1.0] * 4), "too small"),
        (layers([1.02] * 4, [1.02] * 4), "all are scaled alike"),
        (layers([1.01] * 4, [1.0] * 4, std=0.01), "within chance"),
        (layers([1.1, 1.0, 1.0, 1.0], [1.0] * 4), "one layer alone"),
        (layers([1.02] * 2, [1.0] * 2), "too few layers"),
        (layers([1.03] * 4, [1.0] * 4, drift=0.3), "noise of this size may do it"),
    ],
)
def test_what_is_no_signature(frame, why):
    assert not output_signature(frame).distinct, why
    assert sentence(frame).startswith("o against the other roles: no distinct scaling (alpha ")


def test_below_the_others():
    found = output_signature(layers([0.98] * 4, [1.0] * 4))
    assert found.distinct and found.difference == pytest.approx(-0.02)
    assert any(
        one.startswith("o: scaled 2% below the other roles")
        for one in read_frame(layers([0.98] * 4, [1.0] * 4)).sentences
    )


@pytest.mark.parametrize("gone", ["o", "q|up"])
def test_there_is_none_without_both_sides(gone):
    frame = layers([1.02] * 4, [1.0] * 4)
    assert output_signature(frame[~frame["role"].str.fullmatch(gone)]) is None


def test_there_is_none_without_alpha():
    assert (
        output_signature(layers([1.02] * 4, [1.0] * 4).drop(columns=["alpha", "alpha_null", "alpha_null_std"])) is None
    )


def test_only_layers_that_have_both_count():
    frame = layers([1.02] * 5, [1.0] * 5)
    assert output_signature(frame[~((frame["layer"] == 2) & (frame["role"] == "o"))]).layers == 4


def test_rows_that_are_mostly_rounding_do_not_count():
    frame = layers([1.02] * 5, [1.0] * 5)
    assert output_signature(frame.assign(rounding_share=np.where(frame["layer"] < 2, 0.8, 0.1))).layers == 3


def test_a_sampled_control_is_the_one_that_counts():
    frame = layers([1.02] * 4, [1.0] * 4).assign(alpha_spectrum=lambda rows: rows["alpha"], alpha_spectrum_std=1e-3)
    frame["control"] = "draws"
    found = output_signature(frame, draws=50)
    assert found.difference == pytest.approx(0) and not found.distinct
    assert found.control_std == pytest.approx(1e-3 * np.sqrt(1.5) / 2)
