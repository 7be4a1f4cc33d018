"""What is measured, and how: made once from flags or arguments, and handed through whole."""

import dataclasses
from collections.abc import Iterable

from polarax import kernels
from polarax.errors import UsageError
from polarax.metrics import GROUPS, between_groups, parse_metrics, sampled_metrics
from polarax.metrics.catalogue import version
from polarax.planning.devices import working_dtype, working_method

DTYPES = ("auto", "float64", "float32")
DEFAULT_TOP_K = 16  # leading singular vectors compared, as in docs/definitions.md
DEFAULT_CONTROL_DRAWS = 0  # the closed forms are free
DEFAULT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured of every pair of matrices. Hashable: a static argument of the compiled program."""

    groups: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(GROUPS))  # in the catalogue's order
    top_k: int = DEFAULT_TOP_K  # leading singular vectors whose subspaces are compared
    dtype: str = "float64"  # working dtype: float64 (under an enabled x64 scope) or float32
    method: str = "auto"  # how to decompose, one of `polarax.kernels.SVD_METHODS`
    control_draws: int = DEFAULT_CONTROL_DRAWS  # random changes of each kind, as they were asked for
    seed: int = DEFAULT_SEED  # what they are drawn from
    pictures: bool = True  # keep the arrays that are only looked at
    catalogue: int = dataclasses.field(default_factory=version)  # of the metrics that the groups had

    @classmethod
    def parse(
        cls,
        metrics: str | Iterable[str] | None = None,
        *,
        dtype: str = "auto",
        top_k: int = DEFAULT_TOP_K,
        method: str = "auto",
        control_draws: int = DEFAULT_CONTROL_DRAWS,
        seed: int = DEFAULT_SEED,
        pictures: bool = True,
    ) -> "Measurement":
        """A measurement as users ask for it; "auto" becomes what suits this process's devices.

        Raises:
            UsageError: An argument cannot be met.
        """
        groups = parse_metrics(metrics)
        if dtype not in DTYPES:
            raise UsageError(f"Unknown dtype {dtype!r}. Expected one of {', '.join(DTYPES)}.")
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1. Got {top_k}.")
        if method not in kernels.SVD_METHODS:
            raise UsageError(f"Unknown method {method!r}. Expected one of {', '.join(kernels.SVD_METHODS)}.")
        for name, number in (("control_draws", control_draws), ("seed", seed)):
            if number < 0:
                raise UsageError(f"{name} must be at least 0. Got {number}.")
        return cls(groups, top_k, working_dtype(dtype), working_method(method), control_draws, seed, pictures)

    @property
    def sampled(self) -> tuple[str, ...]:
        """The metrics whose control is sampled: none unless random changes are asked for."""
        return sampled_metrics(self.groups) if self.control_draws else ()

    @property
    def draws(self) -> int:
        """Random changes of each kind that are drawn: none where no metric has use for them."""
        return self.control_draws if self.sampled else 0

    @property
    def vectors(self) -> bool:
        """Whether a group needs singular vectors; without, singular values are enough."""
        return any(GROUPS[group].vectors for group in self.groups)

    @property
    def change_values(self) -> bool:
        """Whether the singular values of the change are needed."""
        return self.draws > 0 or any(GROUPS[group].change_values for group in self.groups)

    def between_posts(self) -> "Measurement":
        """What is measured of two posts against each other."""
        return dataclasses.replace(self, groups=between_groups(self.groups), control_draws=0, pictures=False)
