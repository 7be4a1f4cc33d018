"""The reading: what stands out, in two or three plain sentences that follow from the numbers.

A reading is notable when it is both large and far outside its control; the thresholds stand in summary.json.
"""

import pandas as pd

from polarax.metrics import status_kind

# A matrix stands out beyond these; below, its reading is called close to the control.
THRESHOLDS = {
    "coordination": 0.1,  # |coordination|
    "nf_factor": 1.25,  # nf over its control, or the other way round
    "alpha": 0.005,  # |alpha - control|
    "z": 5.0,  # standard deviations of the control, besides the size
    "rounding_share": 0.5,  # of ||D||: more, and the change may be mostly rounding
}

_NAMED = 3  # matrices named in a sentence, the rest are counted


def read_frame(frame: pd.DataFrame) -> list[str]:
    """Plain sentences on a table of matrices.

    Args:
        frame: `Run.frame()`; groups that were not measured are passed over.

    Returns:
        At most one sentence on each of coordination, nf, scaling and rows that say little.
    """
    changed = frame[frame["status"].map(status_kind).isin(["ok", "rank-deficient"])]
    sentences = [_coordination(changed), _nf(changed), _scaling(changed), _caveats(frame)]
    return [sentence for sentence in sentences if sentence]


def _coordination(rows):
    if "coordination" not in rows or rows["coordination"].isna().all():
        return None
    rows = rows[rows["coordination"].notna()]
    size = rows["coordination"].abs()
    large = size > THRESHOLDS["coordination"]
    outside = rows[large & (rows["coordination_z"].abs() > THRESHOLDS["z"])]
    outside = outside.loc[outside["coordination"].abs().sort_values(ascending=False).index]
    sentence = (
        f"Coordination: in {_share(len(rows) - len(outside), len(rows))} the change is split between turning left and "
        f"right vectors together and against each other about as a random change would split it "
        f"(|coordination| up to {THRESHOLDS['coordination']:g}{_or_insignificant(large.sum() - len(outside))})"
    )
    return _with_outside(
        sentence,
        outside,
        lambda row: f"{row['coordination']:+.2f}, control 0 ± {row['coordination_null_std']:.2g}",
    )


def _nf(rows):
    if "nf" not in rows or rows["nf"].isna().all():
        return None
    rows = rows[rows["nf"].notna()]
    held = rows[(rows["control"] == "closed form") & (rows["nf_null"] > 0)]
    rough = len(rows) - len(held)
    if held.empty:
        return (
            f"Rotation: none of the {len(rows)} matrices can be judged by the closed-form control of nf (condition "
            f"number times drift above 1)."
        )
    excess = held["nf_excess"]
    factor = THRESHOLDS["nf_factor"]
    far = (excess > factor) | (excess < 1 / factor)
    outside = held[far & (held["nf_z"].abs() > THRESHOLDS["z"])]
    close = _or_insignificant(far.sum() - len(outside))
    farthest = (outside["nf_excess"].where(outside["nf_excess"] > 1, 1 / outside["nf_excess"])).sort_values(
        ascending=False
    )
    sentence = (
        f"Rotation: nf is within a factor {factor:g}{close} of what a random change of the same size gives in "
        f"{_share(len(held) - len(outside), len(held))} whose control holds"
    )
    sentence = _with_outside(
        sentence,
        outside.loc[farthest.index],
        lambda row: f"{row['nf']:.3g}, control {row['nf_null']:.3g}",
    )
    if rough:
        sentence += f" For the other {rough}, condition number times drift passes 1 and the control is only rough."
    return sentence


def _scaling(rows):
    if "alpha" not in rows or rows["alpha"].isna().all():
        return None
    rows = rows[rows["alpha"].notna()]
    distance = (rows["alpha"] - rows["alpha_null"]).abs()
    far = distance > THRESHOLDS["alpha"]
    outside = rows[far & (rows["alpha_z"].abs() > THRESHOLDS["z"])]
    outside = outside.loc[distance[outside.index].sort_values(ascending=False).index]
    sentence = (
        f"Scaling: alpha is within {100 * THRESHOLDS['alpha']:g}%{_or_insignificant(far.sum() - len(outside))} of its "
        f"control in {_share(len(rows) - len(outside), len(rows))} (it runs from {rows['alpha'].min():.5g} to "
        f"{rows['alpha'].max():.5g})"
    )
    return _with_outside(
        sentence,
        outside,
        lambda row: f"{row['alpha']:.5g}, control {row['alpha_null']:.5g} ± {row['alpha_null_std']:.1g}",
    )


def _caveats(frame):
    notes = []
    unchanged = int((frame["status"] == "unchanged").sum())
    if unchanged:
        notes.append(f"{_matrices(unchanged)} did not change at all")
    broken = int(frame["status"].map(status_kind).isin(["not finite", "zero"]).sum())
    if broken:
        notes.append(f"{_matrices(broken)} could not be read (zero, NaN or Inf)")
    if "rounding_share" in frame:
        rounded = int((frame["rounding_share"] > THRESHOLDS["rounding_share"]).sum())
        if rounded:
            notes.append(f"in {_matrices(rounded)} the rounding of the stored dtype is over half of the change")
    return f"Of all {len(frame)} matrices: {'; '.join(notes)}." if notes else None


def _or_insignificant(count):
    """What a sentence adds to its bound when some matrices are beyond it by no more than chance explains."""
    return f" or {THRESHOLDS['z']:g} standard deviations" if count else ""


def _with_outside(sentence, outside, say):
    if outside.empty:
        return sentence + "."
    named = "; ".join(f"{matrix_label(row)} ({say(row)})" for _, row in outside.head(_NAMED).iterrows())
    more = f"; and {len(outside) - _NAMED} more" if len(outside) > _NAMED else ""
    return f"{sentence}. Outside: {named}{more}."


def matrix_label(row: pd.Series) -> str:
    """How a matrix is called in a sentence or a plot: "layer 5 o", or its name where that is not enough."""
    if row["role"] == "other":
        return row["name"]
    if pd.isna(row["layer"]):
        return row["role"]
    expert = "" if pd.isna(row["expert"]) else f" expert {row['expert']}"
    return f"layer {row['layer']} {row['role']}{expert}"


def _share(part, whole):
    if whole == 1:
        return "the one matrix" if part else "none of the one matrix"
    return f"all {whole} matrices" if part == whole else f"{part} of {whole} matrices"


def _matrices(count):
    return "1 matrix" if count == 1 else f"{count} matrices"
