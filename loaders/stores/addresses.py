"""Addresses as they may be shown and stored: without the login and the query, which may be secret.

Signed addresses carry their signature in the query, others a token. There is no telling which part of it is secret.
"""

import re

_HIDDEN = "***"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
# One slash where an address was taken for a path.
_LOGIN = re.compile(r"(:/{1,2})[^\s/?#]*@")
_END = r"(?=[:;,.)\]}]*(?:[\s'\"]|$))"  # where a word ends, punctuation after it left out
_QUERY = re.compile(rf"(:/{{1,2}}[^\s?'\"]*\?)[^\s'\"]*?{_END}")
_LOOSE_QUERY = re.compile(rf"(\?)[^\s'\"=]+=[^\s'\"]*?{_END}")  # of an address whose beginning was cut off


def redact(text: str) -> str:
    """A text in which all that may be secret of the addresses in it is `***`. Doing it again changes nothing.

    >>> redact("https://user:password@host/model?token=secret: no such file")
    'https://***@host/model?***: no such file'
    >>> redact("hf://owner/name@main")
    'hf://owner/name@main'
    """
    if ":/" in text:
        text = _QUERY.sub(rf"\1{_HIDDEN}", _LOGIN.sub(rf"\1{_HIDDEN}@", text))
    return _LOOSE_QUERY.sub(rf"\1{_HIDDEN}", text) if "?" in text else text


def redact_location(location: str) -> str:
    """The same of a whole path or address, whatever characters its query has. A path stays as it is."""
    if _URL.match(location) is None:
        return location
    address, query, _ = location.partition("?")
    return _LOGIN.sub(rf"\1{_HIDDEN}@", address) + (query and f"?{_HIDDEN}")
