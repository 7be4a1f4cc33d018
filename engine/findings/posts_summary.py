"""Several posts of one base: the summary of each, of each two, and a reading of all."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from polarax.findings.answers import MORE_THAN_CHANCE, Answer, answers_of, details_of
from polarax.findings.effects import DEVIATIONS, rows_that_count
from polarax.findings.mechanical.merges import find_merges

# Two changes are said to go the same way, or opposite ways, beyond this cosine and DEVIATIONS deviations.
COSINE = 0.1


class Compared(NamedTuple):
    """What is known of one post, or of one post against another."""

    frame: pd.DataFrame  # `Run.frame()`
    summary: dict  # `Run.summary()`


def summarise_posts(posts: Mapping[str, Compared], between: Mapping[tuple[str, str], Compared]) -> dict:
    """Summary of all posts, JSON-ready up to NaN.

    Args:
        posts: Label -> what is known of the post.
        between: The labels of two of them -> what is known of the second against the first.

    Returns:
        posts: label -> `Run.summary`; between: "A to B" -> the same of two posts, with `cosine` (see
        `summarise_cosine`); merges: posts that are made of others, as `Merge` has them; reading: how much changed,
        where, and whether it is more than chance, post by post; merges; sentences on each post, on each two, and the
        thresholds they rest on.
    """
    summaries = {label: post.summary for label, post in posts.items()}
    merges = find_merges(
        {label: post.frame for label, post in posts.items()}, {pair: one.frame for pair, one in between.items()}
    )
    told = {frozenset((merge.post, label)) for merge in merges for label in merge.weights}
    sentences = [*answers_of(summaries), *(merge.sentence for merge in merges)]
    for label, summary in summaries.items():
        sentences += [f"{label}: {sentence}" for sentence in details_of(summary)]
    pairs = {}
    for (first, second), pair in between.items():
        name = f"{first} to {second}"
        cosine = summarise_cosine(pair.frame, posts[first].frame, posts[second].frame)
        pairs[name] = {**pair.summary, "cosine": cosine}
        if frozenset((first, second)) not in told:
            sentences += _direction(first, second, cosine)
        chance = [Answer(*one) for one in pair.summary["answers"].items() if one[0] == MORE_THAN_CHANCE]
        said = [*(answer.sentence for answer in chance), *details_of(pair.summary)]
        sentences += [f"{name}: {sentence}" for sentence in said]
    thresholds = [post.summary["reading"][-1] for post in posts.values() if post.summary["reading"]][:1]
    if thresholds and pairs:
        thresholds.append(f"Common direction: a cosine of {COSINE:g}, by {DEVIATIONS:g} standard deviations.")
    made = [merge._asdict() for merge in merges]
    return {"posts": summaries, "between": pairs, "merges": made, "reading": [*sentences, *thresholds]}


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
    counted = [set(frame.loc[rows_that_count(frame), "name"]) for frame in (first, second)]
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
