"""What a model is called, from where it is; and how the name of a tensor is printed."""

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


def short_name(name: str, most: int = 100) -> str:
    """The name of a tensor as it may be printed: one line of at most `most` characters, its middle left out.

    >>> short_name("model.layers.0.mlp.up_proj.weight"), short_name("a" * 5000 + ".weight", 20)
    ('model.layers.0.mlp.up_proj.weight', 'aaaaaa...aaaa.weight')
    """
    if len(name) > most:
        end = (most - 3) * 2 // 3  # it says more than the beginning
        name = f"{name[: most - 3 - end]}...{name[-end:]}"
    return (
        name
        if name.isprintable()
        else "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    )


def _is_generic(name: str) -> bool:
    """Whether a name is of a file, and not of its model."""
    return _GENERIC.fullmatch(name) is not None or any(format.is_generic(name) for format in formats.FORMATS)
