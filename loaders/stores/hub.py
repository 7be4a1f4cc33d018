"""Models of the Hugging Face hub, by byte ranges over https; its cache on this machine is `hub_cache`'s."""

import json
import os
import re
import sys
import threading
import urllib.parse
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.stores.files import StoreError
from polarax.loaders.stores.http_client import HttpClient
from polarax.loaders.stores.web import WebFiles

SCHEME = "hf://"
_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
BARE_NAME = re.compile(rf"({_PART})/({_PART})")
# A revision has no slash, but those that the hub makes itself (refs/pr/3, refs/convert/parquet), or written %2F.
_HUB = re.compile(rf"hf://({_PART})/({_PART})(?:@(refs/[a-z]+/[^/]+|[^/@]+))?(?:/(.*))?")
_KINDS = ("datasets", "spaces")  # other things that the hub keeps


class HubPath(NamedTuple):
    """What a hub path names."""

    owner: str
    name: str
    revision: str  # branch, tag or commit
    file: str  # path in the repository; empty for all of it


def parse_hub_path(source: str) -> HubPath | None:
    """The parts of ``hf://owner/name[@revision][/file]``; None for anything else.

    >>> parse_hub_path("hf://owner/name@v1.0/model.safetensors")
    HubPath(owner='owner', name='name', revision='v1.0', file='model.safetensors')

    Raises:
        CheckpointError: If it begins with hf:// and is no such path.
    """
    if not source.startswith(SCHEME):
        return None
    match = _HUB.fullmatch(source)
    if match is None or match[1] in _KINDS or ".." in (match[4] or "").split("/"):
        raise CheckpointError(f"{source}: expected hf://owner/name, hf://owner/name@revision, or a file below it")
    revision = urllib.parse.unquote(match[3] or DEFAULT_REVISION)
    return HubPath(match[1], match[2], revision, (match[4] or "").strip("/"))


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")


def token_for(url: str) -> str | None:
    """The user's token, for addresses of the hub itself alone: no server that it redirects to gets it."""
    if _origin(url) != _origin(endpoint()):
        return None
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if token is None and not is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        token = _token_of_login() or _token_of_library()
    token = (token or "").strip()
    return token if token.isascii() and token.isprintable() and token else None


def _token_of_login() -> str | None:
    """What `hf auth login` wrote down."""
    file = os.environ.get("HF_TOKEN_PATH") or os.path.join(hub_home(), "token")
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as opened:
            return opened.read(4096)
    except (OSError, ValueError):
        return None


def _token_of_library() -> str | None:
    """What the hub's own library knows, such as the secrets of a notebook; it is asked where it is imported already."""
    library = sys.modules.get("huggingface_hub")
    return library.get_token() if library is not None else None


class HubFiles(WebFiles):
    """The files of a model on the hub, at the commit that its revision names at the first request."""

    def __init__(self, path: HubPath, client: HttpClient):
        """Args: the model, `file` being a folder in it; what to ask by."""
        super().__init__(endpoint(), client)
        self._model = path
        self._state_lock = threading.Lock()
        self._state: tuple[str, tuple[str, ...]] | None = None  # commit, files

    def url(self, key: str) -> str:
        """Address of a file."""
        owner, name, _, folder = self._model
        commit = self._listing()[0]
        file = f"{folder}/{key}" if folder else key
        return f"{endpoint()}/{owner}/{name}/resolve/{urllib.parse.quote(commit, safe='')}/{urllib.parse.quote(file)}"

    def names(self) -> tuple[str, ...]:
        """See `Files`."""
        prefix = f"{self._model.file}/" if self._model.file else ""
        below = [file.removeprefix(prefix) for file in self._listing()[1] if file.startswith(prefix)]
        return tuple(sorted(name for name in below if name and "/" not in name and name[0] != "."))

    def _listing(self) -> tuple[str, tuple[str, ...]]:
        """The commit that is read, and its files; asked for once, so that one checkpoint is of one commit."""
        with self._state_lock:
            if self._state is None:
                owner, name, revision, _ = self._model
                address = f"{endpoint()}/api/models/{owner}/{name}/revision/{urllib.parse.quote(revision, safe='')}"
                text = _Page(address, self._client).load("")
                if text is None:
                    raise StoreError(f"the hub has no model {owner}/{name} with a revision {revision!r}")
                try:
                    answer = json.loads(text)
                    files = tuple(str(item["rfilename"]) for item in answer["siblings"])
                    commit = str(answer.get("sha") or revision)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise StoreError(f"{endpoint()} does not answer as the hub does") from error
                self._state = commit, files
            return self._state


class _Page(WebFiles):
    """One address, as it is."""

    def __init__(self, address: str, client: HttpClient):
        super().__init__(address, client)
        self._address = address

    def url(self, key: str) -> str:
        return self._address


def hub_home() -> str:
    """Where the hub's own library keeps its cache and the token, by the same variables of the environment."""
    home = os.environ.get("HF_HOME")
    if home:
        return os.path.expanduser(home)
    return os.path.join(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "huggingface")


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes, as the hub's own library reads it."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()
