"""Models of the Hugging Face hub in the local cache.

The cache is laid out as https://huggingface.co/docs/huggingface_hub/guides/manage-cache describes it:
``models--owner--name/refs/<revision>`` holds a commit, ``snapshots/<commit>/`` its files. The hub's own library is not
needed for it, and not asked: it takes half a second to import, and where its cache is it knows from the environment as
it was then.
"""

import os
import re

from polarax.loaders import formats
from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.stores.hub import BARE_NAME, DEFAULT_REVISION, SCHEME, HubPath, hub_home, is_set, parse_hub_path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_hub_path(source: str) -> str:
    """The local path of a hub path whose model is in the cache; any other source as it is.

    Args:
        source: ``hf://owner/name[@revision][/file]``, or ``owner/name`` where there is no such local path.

    Raises:
        CheckpointError: If a model is asked for that cannot be had: not in the cache, and the hub is
            not to be asked (a bare name, or HF_HUB_OFFLINE).
    """
    path = parse_hub_path(source)
    if path is not None:
        cached = _cached(path)
        if cached is None and is_set("HF_HUB_OFFLINE"):
            raise CheckpointError(f"{source}: not in the cache ({cache_folder()}), and HF_HUB_OFFLINE is set")
        return cached or source
    match = BARE_NAME.fullmatch(source)
    if match is None or os.path.lexists(source):
        return source
    if not os.path.isdir(_model_folder(match[1], match[2])):
        return source
    cached = _cached(HubPath(match[1], match[2], DEFAULT_REVISION, ""))
    if cached is None:
        raise CheckpointError(
            f"{source}: the hub cache ({cache_folder()}) has no whole copy of its weights; "
            f"{SCHEME}{source} reads them over the network"
        )
    return cached


def cache_folder() -> str:
    """Where the hub's own library keeps what it downloads, by the same variables of the environment."""
    environment = os.environ
    chosen = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return os.path.expanduser(chosen) if chosen else os.path.join(hub_home(), "hub")


def _cached(path: HubPath) -> str | None:
    """The local path in the cache, if what was asked for is there and whole."""
    folder = _model_folder(path.owner, path.name)
    commit: str | None = path.revision
    if not _COMMIT.fullmatch(path.revision):
        try:
            with open(os.path.join(folder, "refs", *path.revision.split("/")), encoding="utf-8") as file:
                commit = file.read(100).strip()
        except (OSError, ValueError):
            return None
    if not commit or not re.fullmatch(r"[A-Za-z0-9._-]+", commit) or commit in (".", ".."):
        return None
    snapshot = os.path.join(folder, "snapshots", commit)
    place = os.path.join(snapshot, path.file) if path.file else snapshot
    return place if _is_whole(place) else None


def _is_whole(place: str) -> bool:
    """Whether a file or folder of the cache has all its weights: a download may have stopped half-way."""
    if os.path.isdir(place):
        format = formats.by_folder(place)
        return format is not None and not format.missing(place)
    if not os.path.isfile(place):
        return False
    format = formats.by_name(os.path.basename(place))
    return format is None or not format.missing(place)


def _model_folder(owner: str, name: str) -> str:
    return os.path.join(cache_folder(), f"models--{owner}--{name}")
