"""Labels of several posts: the names of their folders, or what the user gives."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polarax.errors import UsageError
from polarax.loaders import Checkpoint, model_name
from polarax.loaders.stores.addresses import redact_location

# A label is the name of a folder in the run, and a word in tables and pictures.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_NAMED = re.compile(rf"({_LABEL.pattern})=(.+)", re.DOTALL)
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9._+-]+")
# What else lies beside the runs of the posts.
_TAKEN = ("between", "closer", "plots", "arrays")


def named_posts(post: Any) -> dict[str, Any] | None:
    """Label -> source of several posts; None for what is one post.

    Args:
        post: Several posts are a list or tuple of paths, URLs or open checkpoints, or a mapping of labels to them. In a
            list a text may be "label=path". Anything else is one post; so is a list of one.

    Raises:
        UsageError: A label cannot be one, or two posts have the same.
    """
    if isinstance(post, Mapping) and post and all(map(_is_source, post.values())):
        found = [(str(label), source) for label, source in post.items()]
    elif isinstance(post, (list, tuple)) and len(post) > 1 and all(map(_is_source, post)):
        found = [_named(source) for source in post]
    else:
        return None
    posts: dict[str, Any] = {}
    for label, source in found:
        if _LABEL.fullmatch(label) is None or label in _TAKEN or label.endswith(".partial"):
            raise UsageError(
                f"A post cannot be called {label!r}. Expected letters, digits and ._+- of which the first is no mark, "
                f"and none of {', '.join(_TAKEN)}."
            )
        if label in posts:
            raise UsageError(f"Two posts are named {label!r}: give them labels of their own, as LABEL=PATH.")
        posts[label] = source
    return posts


def one_post(posts: Sequence[str]) -> str | Sequence[str]:
    """What the flag --post stands for: a path, or several."""
    return posts[0] if len(posts) == 1 else posts


def _is_source(given):
    return isinstance(given, (str, bytes, os.PathLike, Checkpoint))


def _named(source):
    """The label and the source of a post."""
    if isinstance(source, Checkpoint):
        return _label_of(source.location), source
    text = os.fsdecode(source)
    match = _NAMED.fullmatch(text)
    if match is not None and not os.path.exists(text):
        return match[1], match[2]
    return _label_of(redact_location(text).partition("?***")[0]), source


def _label_of(location):
    """The end of a path or URL that says something."""
    return _NOT_IN_LABELS.sub("-", model_name(location).partition("@")[0]).strip("-._+")[:100] or "post"
