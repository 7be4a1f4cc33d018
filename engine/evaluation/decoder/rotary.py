"""Rotary positions (RoFormer, arXiv:2104.09864), and the scalings by which models read longer texts.

A head's numbers are turned in pairs, half a head apart, by an angle of position times frequency. The formulas and their
names in config.json are those of transformers (modeling_rope_utils.py).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polarax.errors import UsageError

_DIVIDED = "divided"


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How positions turn the queries and keys of a layer.

    Attributes:
        kind: "default", "linear", "dynamic", "llama3", "yarn", or "divided" by given numbers.
        theta: The base of the frequencies.
        size: Numbers of a head that are turned, the first ones.
        positions: Of the longest text that the model was made for.
        settings: Of the scaling, as config.json has them; sorted.
        divisors: Of each frequency, for "divided", as llama.cpp stores the scaling of Llama 3.
    """

    kind: str
    theta: float
    size: int
    positions: int
    settings: tuple[tuple[str, float], ...] = ()
    divisors: tuple[float, ...] = ()

    def frequencies(self, length: int) -> tuple[np.ndarray, float]:
        """The frequencies, radians a token, (size / 2,) float32, and what cosines and sines are multiplied by.

        Args:
            length: Of the text, which only "dynamic" asks.
        """
        return _KINDS[self.kind](self, dict(self.settings), length)

    def tables(self, positions: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines of the angles, (..., size / 2) float32, at the positions (...)."""
        frequencies, factor = self.frequencies(length)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def turned(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Queries or keys (..., length, head size), turned by tables (..., length, turned / 2) in their dtype."""
    half = cos.shape[-1]
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def rotary_from(
    settings: Mapping[str, Any] | None, theta: float, head_size: int, positions: int, subject: str
) -> Rotary:
    """Reads the scaling in a configuration.

    Args:
        settings: `rope_scaling` or `rope_parameters` of config.json; None for no scaling.
        theta: Where they have none.
        head_size: Numbers of a head.
        positions: `max_position_embeddings`.
        subject: Whose they are, for messages.

    Raises:
        UsageError: A kind that is not known, or a setting that is missing.
    """
    settings = dict(settings or {})
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in _KINDS or kind == _DIVIDED:
        raise UsageError(f"{subject}: rotary scaling {kind!r} is not known. Expected one of {', '.join(SCALINGS)}.")
    size = int(head_size * float(settings.get("partial_rotary_factor") or 1.0))
    if kind in ("llama3", "yarn"):
        settings.setdefault("original_max_position_embeddings", positions)
    missing = [name for name in _NEEDED.get(kind, ()) if not isinstance(settings.get(name), (int, float))]
    if missing:
        raise UsageError(f"{subject}: rotary scaling {kind!r} has no {missing[0]}.")
    numbers = {name: float(value) for name, value in settings.items() if isinstance(value, (int, float))}
    theta = numbers.pop("rope_theta", theta)
    return Rotary(kind, float(theta), size, positions, tuple(sorted(numbers.items())))


def divided(rotary: Rotary, divisors: np.ndarray) -> Rotary:
    """The same with its plain frequencies divided by given numbers, (size / 2,)."""
    return dataclasses.replace(rotary, kind=_DIVIDED, settings=(), divisors=tuple(map(float, divisors)))


def _plain(rotary: Rotary, theta: float | None = None) -> np.ndarray:
    """The frequencies without a scaling."""
    powers = np.arange(0, rotary.size, 2, dtype=np.float32) / np.float32(rotary.size)
    return (1 / (theta or rotary.theta) ** powers).astype(np.float32)


def _default(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    return _plain(rotary), 1.0


def _divided(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    return _plain(rotary) / np.asarray(rotary.divisors, np.float32), 1.0


def _linear(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    """Positions closer together."""
    return _plain(rotary) / np.float32(settings["factor"]), 1.0


def _dynamic(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    """A larger base, once a text is longer than those the model was made for."""
    factor, size = settings["factor"], rotary.size
    longer = factor * max(length, rotary.positions) / rotary.positions - (factor - 1)
    return _plain(rotary, rotary.theta * longer ** (size / (size - 2))), 1.0


def _llama3(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    """Slow frequencies divided by the factor, fast ones kept, those between interpolated."""
    factor, low, high = (settings[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    frequencies = _plain(rotary)
    turns = settings["original_max_position_embeddings"] * frequencies / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - kept) * frequencies / np.float32(factor) + kept * frequencies, 1.0


def _yarn(rotary: Rotary, settings: Mapping[str, float], length: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv:2309.00071): as Llama 3, by the place of a frequency, and sharper attention."""
    size, original = rotary.size, settings["original_max_position_embeddings"]
    factor = settings.get("factor") or rotary.positions / original

    def place(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = place(settings.get("beta_fast") or 32), place(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)
    divided = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    frequencies = _plain(rotary)
    return frequencies / np.float32(factor) * divided + frequencies * (1 - divided), _yarn_factor(settings, factor)


def _yarn_factor(settings: Mapping[str, float], factor: float) -> float:
    """What cosines and sines are multiplied by: its square sharpens the attention."""

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in settings:
        return settings["attention_factor"]
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        return sharpness(settings["mscale"]) / sharpness(settings["mscale_all_dim"])
    return sharpness(1.0)


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    _DIVIDED: _divided,
}
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
SCALINGS = tuple(kind for kind in _KINDS if kind != _DIVIDED)
"""What `rope_type` of config.json may say."""
