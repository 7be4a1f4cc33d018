"""How the steps of a route are carried out: all in one program, or each as a program of its own.

What a route does is of two kinds. Steps over the rows of matrices as they are stored, of which each of several devices
may have some: sums of products, largest entries, triangular factors. And steps on r x r arrays, on one device. Where
all are one program, branches are the program's; where they are many, the host looks and takes one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Result = TypeVar("Result")
Join = Callable[[Any, str], Any]


class Steps(Protocol):
    """Carries out the steps of a route.

    A step is a function of a module, so that it can be a program: it takes pytrees of arrays, and hashable arguments by
    keyword.
    """

    def over_rows(
        self, step: Callable[..., Any], stored: Sequence[Any], *small: Any, join: Join = lax.psum, **static: Any
    ) -> Any:
        """step(*stored, *small, **static).

        Args:
            step: Maps the same rows of every matrix, and all of the small arrays, to what `join` makes one result of.
            stored: (..., m, n) each, as stored.
            *small: Pytrees of arrays without rows.
            join: Makes one result of those of all devices, along the axis of a mesh that it is told.
            **static: What the program is made for.
        """

    def shares(self, step: Callable[..., Any], stored: Sequence[Any], **static: Any) -> Iterable[Any]:
        """step(*stored, **static) of the rows of each device, in the order of the rows."""

    def mapped(self, step: Callable[..., Any], stored: Sequence[Any], *small: Any, **static: Any) -> Any:
        """step(*stored, *small, **static), which gives an array of the same rows; it stays where these are."""

    def small(self, step: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        """step(*arrays, **static), of r x r arrays."""

    def choose(self, which: jax.Array, branches: Sequence[Callable[[], Result]]) -> Result:
        """branches[which]()."""

    def repeat_while(self, unfinished: Callable[[Any], jax.Array], advance: Callable[[Any], Any], state: Any) -> Any:
        """The first of state, advance(state), ... that is not unfinished."""


class InOneProgram:
    """`Steps` as parts of the program that is traced."""

    def over_rows(
        self, step: Callable[..., Any], stored: Sequence[Any], *small: Any, join: Join = lax.psum, **static: Any
    ) -> Any:
        """As `Steps.over_rows`."""
        return step(*stored, *small, **static)

    def shares(self, step: Callable[..., Any], stored: Sequence[Any], **static: Any) -> Iterable[Any]:
        """As `Steps.shares`."""
        return [step(*stored, **static)]

    def mapped(self, step: Callable[..., Any], stored: Sequence[Any], *small: Any, **static: Any) -> Any:
        """As `Steps.mapped`."""
        return step(*stored, *small, **static)

    def small(self, step: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        """As `Steps.small`."""
        return step(*arrays, **static)

    def choose(self, which: jax.Array, branches: Sequence[Callable[[], Result]]) -> Result:
        """As `Steps.choose`."""
        return lax.switch(which, branches)

    def repeat_while(self, unfinished: Callable[[Any], jax.Array], advance: Callable[[Any], Any], state: Any) -> Any:
        """As `Steps.repeat_while`."""
        return lax.while_loop(unfinished, advance, state)


IN_ONE_PROGRAM = InOneProgram()


def joined_norms(norms: Any, axis: str) -> Any:
    """A `Join`: Frobenius norms of whole matrices, a pytree of (...), from those of their rows on each device."""

    def joined(norm):
        largest = lax.pmax(norm, axis)
        unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        return unit * jnp.sqrt(lax.psum((norm / unit) ** 2, axis))

    return jax.tree.map(joined, norms)
