"""Several posts of one base: the summary of each, of each two, and a reading of all."""

from typing import TYPE_CHECKING

import pandas as pd

from polarax.findings.effects import DEVIATIONS, mostly_rounding, rows_that_count

if TYPE_CHECKING:
    from polarax import Runs

# Two changes are said to go the same way, or opposite ways, beyond this cosine and DEVIATIONS deviations.
COSINE = 0.1


def summarise_posts(runs: "Runs") -> dict:
    """Summary of all posts, JSON-ready up to NaN.

    Returns:
        posts: label -> `Run.summary`; between: "A to B" -> the same of two posts, with `cosine` (see
        `summarise_cosine`); reading: sentences on each post, on each two, and the thresholds they rest on.
    """
    posts = {label: run.summary() for label, run in runs.items()}
    frames = {label: run.frame() for label, run in runs.items()}
    between, sentences = {}, []
    for summary, name in ((posts[label], label) for label in posts):
        sentences += [f"{name}: {sentence}" for sentence in summary["reading"][:-1]]
    for first, second in runs.pairs:
        if first not in posts or second not in posts:
            continue
        name = f"{first} to {second}"
        run = runs.between(first, second)
        cosine = summarise_cosine(run.frame(), frames[first], frames[second])
        between[name] = {**run.summary(), "cosine": cosine}
        sentences += _direction(first, second, cosine)
        sentences += [f"{name}: {sentence}" for sentence in between[name]["reading"][:-1]]
    thresholds = [summary["reading"][-1] for summary in posts.values() if summary["reading"]][:1]
    if thresholds and between:
        thresholds.append(f"Common direction: a cosine of {COSINE:g}, by {DEVIATIONS:g} standard deviations.")
    return {"posts": posts, "between": between, "reading": [*sentences, *thresholds]}


def summarise_cosine(between: pd.DataFrame, first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """How the changes of two posts from their base agree in direction.

    Rows are left out in which a change is mostly storage rounding: posts stored alike share that.

    Args:
        between: `Run.frame()` of the two posts.
        first: That of the base and the first post.
        second: And of the second.

    Returns:
        matrices: how many were judged; same, opposite: in how many of them both changes point the same way, or opposite
        ways, beyond `COSINE` and six standard deviations; median of the cosines, their largest magnitude, and the
        median of their standard deviation under the control, whose mean is 0.
    """
    counted = [set(frame.loc[rows_that_count(frame) & ~mostly_rounding(frame), "name"]) for frame in (first, second)]
    rows = between[between["name"].isin(counted[0] & counted[1]) & between["change_cosine"].notna()]
    cosine, far = rows["change_cosine"], rows["change_cosine_z"].abs() > DEVIATIONS
    return {
        "matrices": len(rows),
        "same": int((far & (cosine > COSINE)).sum()),
        "opposite": int((far & (cosine < -COSINE)).sum()),
        "median": cosine.median(),
        "largest": cosine.abs().max(),
        "null_std": rows["change_cosine_null_std"].median(),
    }


def _direction(first, second, cosine):
    """In one sentence, whether two changes have a direction in common."""
    if not cosine["matrices"]:
        return
    beside = (
        f"cosine of the changes {cosine['median']:+.2g} in the median, largest {cosine['largest']:.2g}, control 0 ± "
        f"{cosine['null_std']:.1g}"
    )
    found = [
        f"the {way} way in {cosine[kind]} of {cosine['matrices']} matrices"
        for kind, way in (("same", "same"), ("opposite", "opposite"))
        if cosine[kind]
    ]
    if found:
        yield f"{first} and {second} changed {', '.join(found)} ({beside})."
    else:
        yield f"{first} and {second} changed in unrelated directions in all {cosine['matrices']} matrices ({beside})."
