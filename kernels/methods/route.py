"""A route from matrices to frames: how a method relates a base with its posts, and these posts with each other."""

import abc
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax

from polarax.kernels.frames_type import Frames


class Prepared(Protocol):
    """A matrix in the form that a route works on; a pytree, which may be stacked along a new first axis."""

    @property
    def stored(self) -> jax.Array:
        """The matrix as it was given, (..., m, n), m >= n."""


P = TypeVar("P", bound=Prepared)
D = TypeVar("D")  # what a route keeps of a matrix that it has decomposed; a pytree of arrays


class Post(NamedTuple, Generic[P, D]):
    """A post and its decomposition."""

    matrix: P
    decomposed: D


class Route(abc.ABC, Generic[P, D]):
    """One base and its posts: tall matrices (..., m, n), m >= n. Every matrix is decomposed once.

    The base is prepared and decomposed when a route is made, and `with_post` does the same for a post. Everything takes
    place in the method's `scope`.
    """

    posts: P  # the posts it was made for, along the first axis

    @abc.abstractmethod
    def with_post(self, matrix: P) -> tuple[Frames, D]:
        """Decomposes a post, one of `posts`; the frames of the base and this post, and what was decomposed."""

    @abc.abstractmethod
    def between(self, first: Post[P, D], second: Post[P, D]) -> Frames:
        """The frames of two decomposed posts, the first as the base of the second; without values of their change."""
