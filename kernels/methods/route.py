"""A route from matrices to frames: how a method relates a base with its posts, and these posts with each other.

Its functions may be parts of one program or programs of their own: what one of them finds and another needs is a
pytree of arrays, of which those that come of matrices have the leading axes of these.
"""

import abc
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax

from polarax.kernels.frames_type import Frames
from polarax.kernels.steps import IN_ONE_PROGRAM, Steps

B = TypeVar("B")  # what a route keeps of the base
P = TypeVar("P")  # a post in the form that a route works on beside the post itself; None if there is nothing
D = TypeVar("D")  # what a route keeps of a post that it has decomposed


class Begun(NamedTuple, Generic[B, P]):
    """A base that is decomposed, and its posts prepared."""

    base: B
    posts: tuple[P, ...]


class Post(NamedTuple, Generic[P, D]):
    """A post and its decomposition."""

    stored: jax.Array  # as it was given, (..., m, n), m >= n
    prepared: P
    decomposed: D


class Related(NamedTuple, Generic[D]):
    """Two matrices in each other's frames."""

    frames: Frames
    decomposed: D  # the post
    resolved: jax.Array | None  # (...), bool: False where the frames are but approximate; None where that cannot be


class Route(abc.ABC, Generic[B, P, D]):
    """Functions on one base and its posts: tall matrices (..., m, n), m >= n. Every matrix is decomposed once.

    They are called in the method's `scope`.

    Args:
        change_values: Also decompose the changes from the base, for their singular values.
        dtype: Of the frames.
    """

    takes_new_posts: ClassVar[bool] = False  # whether what is kept of the base serves posts that it was not begun with
    divides_rows: ClassVar[bool] = False  # whether all that is as large as the matrices is among its `steps` over rows
    steps: Steps = IN_ONE_PROGRAM  # how its steps are carried out, where `divides_rows`

    def __init__(self, *, change_values: bool, dtype: jax.typing.DTypeLike):
        self.change_values, self.dtype = change_values, jax.numpy.dtype(dtype)

    @abc.abstractmethod
    def begin(self, base: jax.Array, posts: tuple[jax.Array, ...]) -> Begun[B, P]:
        """Decomposes the base and prepares all posts, as they are stored."""

    @abc.abstractmethod
    def with_post(self, begun: B, base: jax.Array, post: jax.Array, prepared: P) -> Related[D]:
        """Decomposes a post, one of those begun with, and relates it with the base."""

    @abc.abstractmethod
    def between(self, begun: B, first: Post[P, D], second: Post[P, D]) -> Related[Any]:
        """Relates two posts, the first as the base of the second; without values of their change."""

    def only_post(self, base: jax.Array, post: jax.Array) -> tuple[B, Related[D]]:
        """A base with its only post: what `begin` and `with_post` give."""
        begun = self.begin(base, (post,))
        return begun.base, self.with_post(begun.base, base, post, begun.posts[0])

    def with_new_post(self, begun: B | None, base: jax.Array, post: jax.Array) -> Related[D]:
        """Relates the base with a post that it was not begun with, of about its size; begun if that is of use."""
        return self.only_post(base, post)[1]
