"""Which tensors are the factors of low-rank adapters, by their names, and which module each belongs to.

A module's adapter is two thin matrices, A and B, whose product is added to the module's weight. The names are those of:

- PEFT: ``q_proj.lora_A.default.weight``, without ``.default`` in the file of an adapter alone; of embeddings
  ``embed_tokens.lora_embedding_A``, without ``.weight``; of DoRA also ``lora_magnitude_vector``, of AdaLoRA ``lora_E``;
- kohya's scripts: ``lora_down``, ``lora_up`` and ``alpha``; with ``lora_mid`` or ``dora_scale`` it is more than LoRA;
- Flax and MLX: ``q_proj.lora_a``, ``q_proj.lora.lora_a``, and Qwix: ``q_proj.kernel_lora_a``.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_PART = "lora_"  # in the name of every factor
_FACTOR = re.compile(
    r"(?:(?P<module>.*?)(?P<joint>[._/]))?lora_"
    r"(?P<part>[ABabE]|embedding_[AB]|down|up|mid|magnitude_vector)"
    r"(?:[./](?P<adapter>[^./]+?))??(?P<weight>[./]weight)?"
)
_FIRST, _SECOND = ("A", "a", "embedding_A", "down"), ("B", "b", "embedding_B", "up")

# Parts that make an adapter something else than LoRA, and what.
_FURTHER = {"magnitude_vector": "DoRA", "E": "AdaLoRA", "mid": "LoRA of a convolution in three factors"}

PREFIX = "base_model.model."
"""What PEFT writes before every name of the model that it wraps."""


class Factors(NamedTuple):
    """The adapter of one module, in tensors of these names."""

    module: str  # what is adapted, as the adapter spells it; a weight itself where `is_weight`
    adapter: str  # PEFT's name for it, if the tensors' names have one: "default"
    a: str
    b: str
    alpha: str | None = None  # a number beside them that gives the scale
    is_weight: bool = False  # the module is named with its weight: "q_proj.kernel"
    of_embedding: bool = False
    flax: bool = False  # A is (in, rank) and B (rank, out), as the spelling has it; else (rank, in) and (out, rank)
    more: str = ""  # what it is where it is not just LoRA

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return (self.a, self.b, *((self.alpha,) if self.alpha else ()))


class Found(NamedTuple):
    """The factors among a checkpoint's tensors."""

    by_module: dict[str, list[Factors]]  # several only where there are several adapters
    alone: dict[
        str, str
    ]  # tensors that are part of an adapter, but have no other half or are no factor; with the module


def find_factors(names: Iterable[str]) -> Found:
    """Groups the names that are factors by the module that they adapt."""
    parts: dict[tuple[str, str, bool], dict[str, re.Match[str]]] = {}
    alone: dict[str, str] = {}
    candidates = [name for name in names if _PART in name or name.endswith((".alpha", ".dora_scale"))]
    if not any(_PART in name for name in candidates):
        return Found({}, {})
    beside = {name for name in candidates if _PART not in name.rpartition(".")[2]}
    for name in candidates:
        if name.endswith((".bias", "/bias")) and (match := _FACTOR.fullmatch(name[:-5])):
            alone[name] = _module(match)
        elif match := _FACTOR.fullmatch(name):
            key = _module(match), match["adapter"] or "", match["part"].startswith("embedding")
            parts.setdefault(key, {})[match["part"]] = match
    by_module: dict[str, list[Factors]] = {}
    further = {
        (module, adapter): _FURTHER[part]
        for (module, adapter, _), found in parts.items()
        for part in found
        if part in _FURTHER
    }
    for (module, adapter, of_embedding), found in parts.items():
        first = next((found[part] for part in _FIRST if part in found), None)
        second = next((found[part] for part in _SECOND if part in found), None)
        extra = {match.string: module for part, match in found.items() if part in _FURTHER}
        alone |= extra
        if first is None or second is None:
            alone |= {match.string: module for match in found.values()}
            continue
        alpha, dora = f"{module}.alpha", f"{module}.dora_scale"
        more = further.get((module, adapter), "")
        if dora in beside:
            more, alone[dora] = "DoRA", module
        factors = Factors(
            module,
            adapter,
            first.string,
            second.string,
            alpha if alpha in beside else None,
            is_weight=first["joint"] == "_",
            of_embedding=of_embedding,
            flax=first["part"] == "a" and first["weight"] is None,
            more=more,
        )
        by_module.setdefault(module, []).append(factors)
    return Found(by_module, alone)


def has_default_scale(factors: Factors) -> bool:
    """Whether alpha is the rank where it is not said, as kohya's scripts have it, so that the scale is 1."""
    return ".lora_down" in factors.a


def model_name_of(name: str) -> str:
    """A name as the wrapped model has it: without what PEFT writes before it.

    >>> model_name_of("base_model.model.lm_head")
    'lm_head'
    """
    return name.removeprefix(PREFIX)


def _module(match: re.Match[str]) -> str:
    module = match["module"] or ""
    return module.removesuffix(".lora") if match["part"] in ("a", "b") else module
