"""What a model is called, from where it is."""

import re

from polarax.loaders import formats

# Names that training code gives to files, whichever model is in them.
_GENERIC = re.compile(r"model(?:[-.].*)?|pytorch_model.*|consolidated.*")


def model_name(location: str) -> str:
    """The end of a path or URL that says which model it is, without the ending of a file; empty if nothing does.

    >>> model_name("runs/sft/model.safetensors"), model_name("runs/rl.gguf"), model_name("hf://owner/name@main/")
    ('sft', 'rl', 'name@main')
    """
    parts = [part for part in location.rstrip("/").split("/") if part]
    while len(parts) > 1 and _is_generic(parts[-1]):
        parts.pop()
    return formats.stem(parts[-1]) if parts else ""


def _is_generic(name: str) -> bool:
    """Whether a name is of a file, and not of its model."""
    return _GENERIC.fullmatch(name) is not None or any(format.is_generic(name) for format in formats.FORMATS)
