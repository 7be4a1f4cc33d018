"""Tensors of three axes or more that no table knows: one matrix, no matrix, or something of unknown axes."""

import math
import re
from collections.abc import Sequence

from polarax.loaders.matrices.axes import Meaning
from polarax.loaders.matrices.flax_kernels import is_kernel_name

# Modules of convolutions in PyTorch, Flax and MLX, and those that cut an image into patches by one.
_CONVOLUTION = re.compile(
    r"(?:^|[._/])(?:[a-z]{0,2}conv(?:[0-9]*d?|s|olution(?:al)?|transpose)?|patch_embed(?:s|ding|dings)?)(?=[._/]|$)",
    re.IGNORECASE,
)
_LARGEST_WINDOW = 15  # of a convolution that is told by its shape; Inception's and ResNet's have up to 11


def one_matrix(name: str, shape: Sequence[int]) -> Meaning | None:
    """The axes of a tensor that is one matrix behind axes of length one, as position embeddings are; None of others."""
    if (
        len(shape) < 3
        or max(shape[:-2]) > 1
        or min(shape[-2:]) < 2
        or is_kernel_name(name)
        or _is_convolution(name, shape)
    ):
        return None
    return Meaning(("1",) * (len(shape) - 2) + ("o", "i"))


def why_no_matrix(name: str, shape: Sequence[int]) -> str:
    """The reason why a tensor is not compared.

    Args:
        name: Of the tensor.
        shape: Its own; axes of length one count for nothing.
    """
    rank = len(shape)
    if sum(size != 1 for size in shape) < 2 or _is_convolution(name, shape):
        return f"{rank}-D: not a matrix"
    if math.prod(shape) == 0:
        return "empty"
    return f"{rank}-D: axes unknown (give them by --role_map)"


def _is_convolution(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a convolution's, by its module's name, or by a window of odd sides."""
    if len(shape) < 3:
        return False
    if _CONVOLUTION.search(name):
        return True
    if len(shape) < 4:
        return False
    windows = [shape[: len(shape) - 2]] if is_kernel_name(name) else [shape[2:], shape[1:-1]]  # PyTorch's, MLX's
    return any(all(size % 2 and size <= _LARGEST_WINDOW for size in window) for window in windows)
