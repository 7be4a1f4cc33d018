"""What is measured, and how: made once from flags or arguments, and handed through whole."""

import dataclasses
from typing import Any

from polarax import kernels
from polarax.errors import UsageError
from polarax.kernels.methods import AUTO, Route, method_named
from polarax.metrics import GROUPS, between_groups, parse_metrics, sampled_metrics
from polarax.metrics.catalogue import POLAR, version
from polarax.planning.devices import takes_batches, working_dtype, working_method
from polarax.planning.options import DEFAULT_CONTROL_DRAWS, DEFAULT_SEED, DEFAULT_TOP_K, DTYPES, Options


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured of every pair of matrices. Hashable: a static argument of the compiled program."""

    groups: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(GROUPS))  # in the catalogue's order
    top_k: int = DEFAULT_TOP_K  # leading singular vectors whose subspaces are compared
    dtype: str = "float64"  # working dtype: float64 (under an enabled x64 scope) or float32
    method: str = "auto"  # how to decompose, one of `polarax.kernels.SVD_METHODS`
    control_draws: int = DEFAULT_CONTROL_DRAWS  # random changes of each kind, as they were asked for
    seed: int = DEFAULT_SEED  # what they are drawn from
    by_products: bool = False  # polar factors are iterated for and nothing is decomposed: of the group "polar" alone
    pictures: bool = True  # keep the arrays that are only looked at
    quick: bool = False  # a first look: leading values and vectors, by products in float32; dtype is that of sums
    catalogue: int = dataclasses.field(default_factory=version)  # of the metrics that the groups had

    @classmethod
    def parse(cls, options: Options, *, pictures: bool = True) -> "Measurement":
        """The measurement that users ask for; "auto" becomes what suits this process's devices.

        Raises:
            UsageError: An option cannot be met.
        """
        groups = parse_metrics(options.metrics, quick=options.quick)
        if options.dtype not in DTYPES:
            raise UsageError(f"Unknown dtype {options.dtype!r}. Expected one of {', '.join(DTYPES)}.")
        if options.top_k < 1:
            raise UsageError(f"top_k must be at least 1. Got {options.top_k}.")
        if options.method not in kernels.SVD_METHODS:
            known = ", ".join(kernels.SVD_METHODS)
            raise UsageError(f"Unknown method {options.method!r}. Expected one of {known}.")
        if options.quick:
            for name, given, reason in (
                ("method", options.method, "it decomposes no whole matrix"),
                ("dtype", options.dtype, "its products are taken in float32, its sums in float64 where that is fast"),
            ):
                if given != "auto":
                    raise UsageError(f"--quick takes no --{name}: {reason}. Got --{name}={given}.")
        for name, number in (("control_draws", options.control_draws), ("seed", options.seed)):
            if number < 0:
                raise UsageError(f"{name} must be at least 0. Got {number}.")
        # Draws of the change's spectrum need singular values; on CPU two eigendecompositions take less than products.
        alone = groups == (POLAR.name,) and options.method == AUTO and not options.control_draws
        by_products = alone and takes_batches()
        return cls(
            groups=groups,
            top_k=options.top_k,
            dtype="float32" if by_products and options.dtype == "auto" else working_dtype(options.dtype),
            by_products=by_products,
            method=working_method(options.method),
            control_draws=options.control_draws,
            seed=options.seed,
            pictures=pictures,
            quick=options.quick,
        )

    @property
    def sampled(self) -> tuple[str, ...]:
        """The metrics whose control is sampled: none unless random changes are asked for."""
        return sampled_metrics(self.groups, quick=self.quick) if self.control_draws else ()

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

    @property
    def own_spectrum(self) -> bool:
        """Whether metrics have the control of a change with its own singular values in random directions."""
        return self.change_values and not self.quick and not self.by_products

    @property
    def keeps_bases(self) -> bool:
        """Whether a base is decomposed into something that other posts can be compared with."""
        return self.vectors and not self.quick and not self.by_products and self._route.takes_new_posts

    @property
    def divides_rows(self) -> bool:
        """Whether it can be measured of matrices that are divided by rows over devices.

        Not a first look or sampled controls, nor what another package reads of stored entries.
        """
        whole = self.quick or self.draws
        return not whole and self._route.divides_rows and all(GROUPS[group].divides_rows for group in self.groups)

    @property
    def _route(self) -> Route[Any, Any, Any]:
        return method_named(self.method).route(change_values=self.change_values, dtype=self.dtype)

    def between_posts(self) -> "Measurement":
        """What is measured of two posts against each other."""
        groups = between_groups(self.groups)
        return dataclasses.replace(self.without_draws(), groups=groups, pictures=False)

    def without_draws(self) -> "Measurement":
        """What is measured but for sampled controls."""
        return dataclasses.replace(self, control_draws=0, seed=DEFAULT_SEED)

    def of_any_seed(self) -> "Measurement":
        """The same for every seed, which is an operand of programs."""
        return dataclasses.replace(self, seed=DEFAULT_SEED)
