"""The order of the rows of queries and keys, which rotary embeddings turn in pairs.

Meta's code turns neighbours: the rows of a head are (pairs, 2). transformers turns rows half a head apart: (2, pairs).
The two hold the same numbers, and matrices of different order must not be compared.
"""

from polarax.loaders.checkpoint import INTERLEAVED
from polarax.loaders.matrices.heads import Heads
from polarax.loaders.matrices.view import View


def deinterleaved(view: View, heads: Heads | None) -> View:
    """A matrix in Meta's order as one in Hugging Face's; marked as it is, if the heads are unknown or do not fit.

    Args:
        view: Queries or keys, a matrix (out, in) as it is stored.
        heads: As the configuration has them.
    """
    count = None if heads is None else heads.queries if view.role == "q" else heads.keys
    rows, columns = view.shape
    if heads is None or count is None or rows != count * heads.size or heads.size % 2 or not view.is_plain:
        return view._replace(row_order=INTERLEAVED)
    return view._replace(factors=(count, heads.size // 2, 2, columns), order=(0, 2, 1, 3))
