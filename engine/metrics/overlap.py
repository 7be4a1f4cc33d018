"""The leading subspaces, and intruder vectors (arXiv:2410.21228)."""

from polarax import kernels
from polarax.metrics.catalogue import OVERLAP, Metric, Shown, register
from polarax.metrics.matrix_pair import MatrixPair, Readings


def read_overlap(pair: MatrixPair) -> Readings:
    """The columns of `OVERLAP`, and the cosines of the principal angles, (..., k)."""
    overlap = kernels.overlap_of_frames(pair.vectors, k=pair.top_k)
    names = ("intruders_left", "intruders_right", "cosines_left", "cosines_right")
    return {f"overlap_{side}": getattr(overlap, side) for side in ("left", "right")} | {
        name: getattr(overlap, name) for name in names
    }


register(
    OVERLAP,
    [
        *(
            Metric(
                f"overlap_{side}",
                f"overlap of the leading {side} subspaces, 1 for the same",
                shown=Shown.STEPS | Shown.FACTS,
                format="{:.4f}",
                heading=f"overlap, {side}",
            )
            for side in ("left", "right")
        ),
        *(
            Metric(f"intruders_{side}", f"leading {side} post vectors unlike every base vector")
            for side in ("left", "right")
        ),
    ],
    read_overlap,
)
