"""What users may ask of a comparison: one record, from which the flags are made and which the Python API fills."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from polarax import kernels
from polarax.metrics import GROUPS

DTYPES = ("auto", "float64", "float32")
DEFAULT_TOP_K = 16  # leading singular vectors compared, as in docs/definitions.md
DEFAULT_CONTROL_DRAWS = 0  # the closed forms are free
DEFAULT_SEED = 0
DEFAULT_MEMORY_GIB = 4.0


def _option(default: Any, help: str | Callable[[], str]) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Options:
    """Which matrices are compared, and how; not checked yet. The help is what the flag of the same name says.

    A help that lists what is registered is made when it is asked for.
    """

    include: str | Sequence[str] | None = _option((), "Regular expression: only names in which it is found")
    exclude: str | Sequence[str] | None = _option((), "Regular expression: no names in which it is found")
    roles: str | Iterable[str] | None = _option("", "Roles to compare, such as q,k,v,o; all by default.")
    layers: str | int | Iterable[int] | None = _option("", "Layers to compare, such as 0,3-5; all by default.")
    metrics: str | Iterable[str] | None = _option(
        "", lambda: f"Groups of metrics, from {','.join(GROUPS)}; all by default."
    )
    quick: bool = _option(
        False,
        "A first look by matrix products alone: drift, scale, leading singular values and subspaces, each with its "
        "control, and what is known of their convergence. No decomposition of whole matrices.",
    )
    dtype: str = _option("auto", f"Working precision: {' or '.join(DTYPES)}.")
    top_k: int = _option(DEFAULT_TOP_K, "Leading singular vectors whose subspaces are compared.")
    method: str = _option("auto", lambda: f"How to decompose: {', '.join(kernels.SVD_METHODS)}.")
    role_map: str | PathLike | Mapping[str, Any] | None = _option(None, "JSON file with a table of names of your own.")
    common_rows: bool = _option(
        False, "Compare embeddings and heads of different vocabularies on the rows that both have."
    )
    allow_partial: bool = _option(
        False, "Compare what is paired even where more than half of either model's matrix weights has no partner."
    )
    control_draws: int = _option(
        DEFAULT_CONTROL_DRAWS,
        "Random changes of each kind (isotropic, the change's spectrum in random directions, its entries shuffled) to "
        "draw for every matrix, as sampled controls.",
    )
    seed: int = _option(DEFAULT_SEED, "What random changes are drawn from.")
    keep_base: str | PathLike | None = _option(
        None,
        "Folder that keeps the base decomposed, for the next comparison with it: other posts, other flags, the next "
        "step. What it takes is said beforehand.",
    )
    memory_gib: float = _option(
        DEFAULT_MEMORY_GIB, "Memory, in GiB, that a run may take on the host, over that of an idle process."
    )
