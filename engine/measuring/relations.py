"""What the post of a measured matrix is to its base, while both are at hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from polarax.measuring.arrangement import find_arrangement
from polarax.metrics.relation import Relation, Resemblance
from polarax.metrics.status import Status


def relation_of(
    row: Mapping[str, Any], s_base: np.ndarray, s_post: np.ndarray, base: np.ndarray, post: np.ndarray
) -> Relation:
    """The relation of one matrix; the entries are looked at only where its numbers are those of a stranger.

    Args:
        row: Its row of matrices.csv.
        s_base: Singular values of the base, (r,).
        s_post: Of the post, (r,).
        base: (m, n) as it is stored.
        post: (m, n) as it is stored.
    """
    if Status.of_message(row["status"]) not in (Status.OK, Status.RANK_DEFICIENT):
        return Relation.TRAINED
    resemblance = Resemblance(row, s_base, s_post)
    if not resemblance.may_be_rearranged:
        return Relation.TRAINED
    return find_arrangement(base, post) or resemblance.relation()
