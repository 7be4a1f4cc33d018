"""The reading: sentences that follow from the numbers, on tables made by hand and on planted changes."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.linalg

import polarax
from polarax.report.reading import matrix_label, read_frame

SEEDS = 20

# A matrix where nothing stands out: each number close to its control.
QUIET = {
    "layer": 0,
    "role": "q",
    "expert": None,
    "status": "ok",
    "rounding_share": 0.01,
    "alpha": 1.0003,
    "alpha_null": 1.0002,
    "alpha_null_std": 1e-4,
    "alpha_z": 1.0,
    "nf": 0.021,
    "nf_null": 0.02,
    "nf_excess": 1.05,
    "nf_z": 2.0,
    "coordination": 0.01,
    "coordination_null_std": 0.005,
    "coordination_z": 2.0,
    "control": "closed form",
}


def table(*changes, count=6):
    """A frame of quiet matrices, of which the leading ones differ as given."""
    rows = [QUIET | {"layer": layer, "name": f"layers.{layer}.q"} for layer in range(count)]
    for row, change in zip(rows, changes, strict=False):
        row |= change
    frame = pd.DataFrame(rows)
    return frame.astype({"layer": "Int64", "expert": "Int64"})


def alpha(value):
    return {"alpha": value, "alpha_z": (value - 1.0002) / 1e-4}


def nf(value, deviation=0.0005):
    return {"nf": value, "nf_excess": value / 0.02, "nf_z": (value - 0.02) / deviation}


def coordination(value):
    return {"coordination": value, "coordination_z": value / 0.005}


def sentence(frame, start):
    found = [one for one in read_frame(frame) if one.startswith(start)]
    assert len(found) == 1, read_frame(frame)
    return found[0]


class TestQuiet:
    def test_where_nothing_stands_out_no_matrix_is_named(self):
        sentences = read_frame(table())
        assert [one.split()[0] for one in sentences] == ["Coordination:", "Rotation:", "Scaling:"]
        for one in sentences:
            assert "all 6 matrices" in one and "Outside" not in one and one.endswith(".")
            assert "standard deviations" not in one

    def test_the_range_of_alpha_is_that_of_the_numbers(self):
        frame = table(alpha(0.9961), alpha(1.0042))
        assert "(it runs from 0.9961 to 1.0042)" in sentence(frame, "Scaling")

    def test_one_matrix_alone(self):
        for one in read_frame(table(count=1)):
            assert "the one matrix" in one and "Outside" not in one

    def test_no_matrices_at_all(self):
        assert read_frame(table().iloc[:0]) == []


class TestOutside:
    @pytest.mark.parametrize("value", [0.31, -0.31])
    def test_one_matrix_stands_out_in_coordination(self, value):
        frame = table({}, {}, coordination(value) | {"role": "o", "layer": 5})
        one = sentence(frame, "Coordination")
        assert one.startswith("Coordination: in 5 of 6 matrices")
        assert one.endswith(f"Outside: layer 5 o ({value:+.2f}, control 0 ± 0.005).")
        assert "Outside" not in sentence(frame, "Rotation") + sentence(frame, "Scaling")

    @pytest.mark.parametrize("value", [0.05, 0.004])
    def test_one_matrix_stands_out_in_nf(self, value):
        one = sentence(table({}, nf(value)), "Rotation")
        assert "within a factor 1.25 of what a random change of the same size gives in 5 of 6" in one
        assert one.endswith(f"Outside: layer 1 q ({value:.3g}, control 0.02).")

    @pytest.mark.parametrize("value", [1.02, 0.98])
    def test_one_matrix_stands_out_in_alpha(self, value):
        one = sentence(table(alpha(value)), "Scaling")
        assert one.startswith("Scaling: alpha is within 0.5% of its control in 5 of 6 matrices")
        assert one.endswith(f"Outside: layer 0 q ({value:.5g}, control 1.0002 ± 0.0001).")

    def test_the_farthest_come_first_and_three_are_named(self):
        shifts = [0.2, -0.9, 0.4, 0.15, -0.3]
        one = sentence(table(*map(coordination, shifts)), "Coordination")
        assert re.findall(r"layer (\d) q", one) == ["1", "2", "4"]
        assert one.startswith("Coordination: in 1 of 6") and one.endswith("; and 2 more.")

    def test_an_nf_too_small_is_as_far_as_one_too_large(self):
        one = sentence(table(nf(0.06), nf(0.002), nf(0.03)), "Rotation")
        assert re.findall(r"layer (\d) q", one) == ["1", "0", "2"]

    def test_the_one_matrix_there_is(self):
        one = sentence(table(coordination(0.5), count=1), "Coordination")
        assert "in none of the one matrix" in one and "layer 0 q (+0.50" in one

    def test_matrices_are_called_so_that_they_can_be_found(self):
        rows = table(
            {"role": "other", "name": "blocks.7.mixer"},
            {"role": "embed", "layer": None},
            {"role": "up", "expert": 11, "layer": 2},
        )
        labels = [matrix_label(row) for _, row in rows.head(3).iterrows()]
        assert labels == ["blocks.7.mixer", "embed", "layer 2 up expert 11"]


class TestBeyondTheSizeButWithinChance:
    """Far from the control, and no farther than a random change gets: nothing is named, and nothing wrong is said."""

    def test_coordination(self):
        one = sentence(table({"coordination": 0.2, "coordination_null_std": 0.1, "coordination_z": 2.0}), "Coord")
        assert "Outside" not in one and "all 6" in one
        assert "|coordination| up to 0.1 or 5 standard deviations)" in one

    def test_nf(self):
        one = sentence(table(nf(0.03, deviation=0.01)), "Rotation")
        assert "Outside" not in one and "within a factor 1.25 or 5 standard deviations of what" in one

    def test_alpha(self):
        one = sentence(table({"alpha": 1.02, "alpha_null_std": 0.02, "alpha_z": 1.0}), "Scaling")
        assert "Outside" not in one and "within 0.5% or 5 standard deviations of its control" in one

    def test_significant_but_small_is_not_named(self):
        for one in read_frame(table(coordination(0.09) | nf(0.024) | alpha(1.0045))):
            assert "Outside" not in one and "standard deviations" not in one


class TestControlsThatDoNotHold:
    ROUGH = {"control": "out of range"} | nf(0.2)

    def test_all_of_them(self):
        one = sentence(table(*[self.ROUGH] * 6), "Rotation")
        assert one.startswith("Rotation: none of the 6 matrices can be judged")
        assert "Outside" not in one

    def test_some_of_them_are_counted_and_not_judged(self):
        one = sentence(table(self.ROUGH, nf(0.05)), "Rotation")
        assert "in 4 of 5 matrices whose control holds" in one
        assert "layer 1 q" in one and "layer 0 q" not in one
        assert one.endswith("For the other 1, condition number times drift passes 1 and the control is only rough.")

    def test_coordination_and_alpha_hold_at_any_size(self):
        frame = table(self.ROUGH | coordination(0.4) | alpha(1.1))
        assert "layer 0 q" in sentence(frame, "Coordination")
        assert "layer 0 q" in sentence(frame, "Scaling")


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("columns", "starts"),
        [
            (("alpha", "alpha_null", "alpha_null_std", "alpha_z"), ["Coordination:", "Rotation:"]),
            (("nf", "nf_null", "nf_excess", "nf_z"), ["Coordination:", "Scaling:"]),
            (("coordination", "coordination_null_std", "coordination_z"), ["Rotation:", "Scaling:"]),
            (("rounding_share",), ["Coordination:", "Rotation:", "Scaling:"]),
        ],
    )
    def test_a_group_that_was_not_measured_is_passed_over(self, columns, starts):
        sentences = read_frame(table().drop(columns=list(columns)))
        assert [one.split()[0] for one in sentences] == starts

    @pytest.mark.parametrize("status", ["not finite: 3 in post", "zero base", "unchanged"])
    def test_rows_that_say_nothing_are_counted_and_not_judged(self, status):
        bad = {"status": status} | coordination(0.9) | nf(0.9) | alpha(0.0)
        frame = table(bad, bad)
        for start in ("Coordination", "Rotation", "Scaling"):
            assert "all 4 matrices" in sentence(frame, start)
        what = "did not change at all" if status == "unchanged" else "could not be read (zero, NaN or Inf)"
        assert sentence(frame, "Of all") == f"Of all 6 matrices: 2 matrices {what}."

    def test_nothing_but_rows_that_say_nothing(self):
        sentences = read_frame(table(*[{"status": "unchanged"}] * 6))
        assert sentences == ["Of all 6 matrices: 6 matrices did not change at all."]

    def test_rank_deficient_rows_are_judged(self):
        frame = table({"status": "rank 5 of 8 in base"} | coordination(0.5))
        assert "layer 0 q" in sentence(frame, "Coordination")

    def test_a_matrix_that_cannot_rotate_is_left_out_of_coordination(self):
        frame = table({"coordination": np.nan, "coordination_z": np.nan})
        assert "all 5 matrices" in sentence(frame, "Coordination")

    def test_rounding_is_flagged(self):
        one = sentence(table({"rounding_share": 0.8}, {"rounding_share": 0.49}), "Of all")
        assert one == "Of all 6 matrices: in 1 matrix the rounding of the stored dtype is over half of the change."


class TestOnWeights:
    """Whole runs. All seeds go into one, so that each shape is compiled once."""

    SHAPES = {"q": (64, 64), "up": (96, 40), "down": (40, 96)}
    NAMES = {"q": "self_attn.q_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    PLANTED = {"rotated": "layers.1.self_attn.q_proj", "scaled": "layers.2.mlp.up_proj"}

    @pytest.fixture(scope="class")
    @staticmethod
    def frame():
        base, post = {}, {}
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            for layer in range(3):
                for role, shape in TestOnWeights.SHAPES.items():
                    name = f"layers.{layer}.{TestOnWeights.NAMES[role]}"
                    w = well_conditioned(rng, shape)
                    noise = rng.normal(size=shape) * np.linalg.norm(w) / np.sqrt(w.size)
                    for kind in ("noise", "planted"):
                        change = 0.02 * noise
                        if kind == "planted" and name == TestOnWeights.PLANTED["rotated"]:
                            change = coordinated_rotation(rng, w) - w + 0.001 * noise
                        if kind == "planted" and name == TestOnWeights.PLANTED["scaled"]:
                            change = 0.02 * w + 0.001 * noise
                        base[f"{kind}.{seed}.{name}"] = w.astype(np.float32)
                        post[f"{kind}.{seed}.{name}"] = (w + change).astype(np.float32)
        run = polarax.compare(base, post, metrics="change,scaling,rotation,budget", progress=False)
        frame = run.frame()
        # Each of the models has names of its own, as far as the reading is concerned.
        frame[["kind", "seed", "name"]] = frame["name"].str.split(".", n=2, expand=True).to_numpy()
        role = frame["name"].str.split(".").str[-1].map({"q_proj": "q", "up_proj": "up", "down_proj": "down"})
        layer = frame["name"].str.split(".").str[1].astype(int)
        return frame.assign(role=role, layer=layer.astype("Int64"))

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_on_noise_nothing_is_named(self, frame, seed):
        rows = frame[(frame["kind"] == "noise") & (frame["seed"] == str(seed))]
        assert len(rows) == 9
        sentences = read_frame(rows)
        assert [one.split()[0] for one in sentences] == ["Coordination:", "Rotation:", "Scaling:"]
        for one in sentences:
            assert "Outside" not in one

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_planted_changes_are_named_and_no_others(self, frame, seed):
        rows = frame[(frame["kind"] == "planted") & (frame["seed"] == str(seed))]
        sentences = {one.split(":")[0]: one for one in read_frame(rows)}

        def named(start):
            return re.findall(r"layer \d \w+", sentences[start])

        assert named("Coordination") == ["layer 1 q"]
        assert re.search(r"layer 1 q \(\+(0\.9|1\.0)", sentences["Coordination"])
        assert named("Scaling") == ["layer 2 up"]
        assert "layer 2 up (1.02," in sentences["Scaling"]
        # Both turn left and right alike, far less apart than noise of their size would.
        assert set(named("Rotation")) == {"layer 1 q", "layer 2 up"}


def well_conditioned(rng, shape):
    rank = min(shape)
    left, _ = np.linalg.qr(rng.normal(size=(shape[0], rank)))
    right, _ = np.linalg.qr(rng.normal(size=(shape[1], rank)))
    return (left * np.geomspace(8, 1, rank)) @ right.T


def coordinated_rotation(rng, w):
    left, values, right_t = np.linalg.svd(w, full_matrices=False)
    skew = rng.normal(size=(len(values), len(values)))
    turn = scipy.linalg.expm(0.002 * (skew - skew.T))
    return (left @ turn * values) @ turn.T @ right_t
