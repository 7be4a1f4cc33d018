"""Models that are saved with their adapters beside the weights, not yet added to them.

PEFT wraps a module: `q_proj.base_layer.weight` is its weight, `q_proj.lora_A.default.weight` and `lora_B` the factors.
A module that is trained whole is kept twice, `lm_head.original_module.weight` and
`lm_head.modules_to_save.default.weight`, of which the second counts.
"""

import math
import re
from collections.abc import Mapping

from polarax.loaders.adapters.adapted_checkpoint import AdaptedCheckpoint, Weight
from polarax.loaders.adapters.adapter_config import UNKNOWN_SCALE, AdapterConfig, parse_adapter_config
from polarax.loaders.adapters.addition import Addition, addition_of
from polarax.loaders.adapters.factor_names import Factors, Found, find_factors, has_default_scale
from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.config import ADAPTER_CONFIG
from polarax.loaders.dtypes import is_floating
from polarax.loaders.formats.foreign import listed
from polarax.loaders.quantisation import quantised

# Where the weight of an adapted module is: in what it wraps, beside the factors, or in the module that it is made for.
_WEIGHTS = (
    *("base_layer.weight", "weight", "base_layer.kernel", "kernel", "base_module.kernel", "base_module.weight"),
    *("linear.weight", "embedding.weight", "base_layer.embedding", "embedding"),
)
_TRAINED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)")
_INSIDE = ".base_layer."
_WRAPPED = f"{_INSIDE}weight"
_EMBEDDINGS = ("embed_tokens", "lm_head")  # of which PEFT may save the weight: its EMBEDDING_LAYER_NAMES
_MARKS = ("lora_", _WRAPPED, ".modules_to_save.")


def with_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the adapters beside its weights added to them; itself if it has none.

    The factors of an adapter alone, without the weights, stay as they are: see `on_base`. A weight whose adapter cannot
    be added is listed as unusable, with the reason.

    Raises:
        CheckpointError: If adapter_config.json holds what it must not.
    """
    names = checkpoint.names()
    if not any(mark in name for name in names for mark in _MARKS):
        return checkpoint
    found = find_factors(names)
    if is_alone(checkpoint, found):
        return checkpoint
    wrapped = any(name.endswith(_WRAPPED) or ".modules_to_save." in name for name in names)
    weights = {module: weight_beside(factors[0], checkpoint) for module, factors in found.by_module.items()}
    return _Merger(checkpoint, found, weights).merge() if wrapped or weights else checkpoint


def is_alone(checkpoint: Checkpoint, found: Found) -> bool:
    """Whether factors are an adapter that is saved without its model.

    With an adapted embedding or head PEFT may save the weight too (`save_embedding_layers`).
    """
    saved = {f"{factors[0].module}{_WRAPPED}" for factors in found.by_module.values() if _may_be_saved(factors[0])}
    weights = {weight_beside(factors[0], checkpoint) for factors in found.by_module.values()} - {None}
    wrapped = {name for name in checkpoint.names() if _INSIDE in name and "lora_" not in name}
    if not found.by_module or not weights | wrapped <= saved:
        return False
    return not weights or checkpoint.adapter_config is not None


def _may_be_saved(factors: Factors) -> bool:
    """Whether factors are of a module whose weight may be in the file of an adapter: no adapter has a name there."""
    return not factors.adapter and (factors.of_embedding or factors.module.rpartition(".")[2] in _EMBEDDINGS)


def weight_beside(factors: Factors, names: Checkpoint) -> str | None:
    """The weight that factors are for, among the names of their own checkpoint; None if it is not there."""
    if factors.is_weight:
        return factors.module if factors.module in names else None
    modules = [factors.module]
    if factors.module.endswith(".lora"):
        modules.append(factors.module.removesuffix(".lora"))
    candidates = [f"{module}.{weight}" if module else weight for module in modules for weight in _WEIGHTS]
    return next((name for name in candidates if name in names), None)


def config_of(checkpoint: Checkpoint) -> AdapterConfig | None:
    """What is said of the adapters in a checkpoint.

    Raises:
        CheckpointError: If adapter_config.json holds what it must not.
    """
    settings = checkpoint.adapter_config
    return None if settings is None else parse_adapter_config(settings, f"{checkpoint.location}: {ADAPTER_CONFIG}")


def scaled_addition(
    factors: Factors, checkpoint: Checkpoint, config: AdapterConfig | None, weight: str, shape: tuple[int, ...]
) -> Addition | str:
    """The addition that factors make to a weight; or why they cannot be added.

    Args:
        factors: Names of tensors.
        checkpoint: Holds them.
        config: What is said of them, if anything is.
        weight: Name of the weight, for the reason.
        shape: Of the weight.
    """
    refusal = factors.more or (config.refusal if config is not None else "")
    if refusal:
        return f"an adapter of the kind {refusal}: only those of LoRA are added"
    made = addition_of(factors, checkpoint, weight, shape, config is not None and config.transposed)
    if isinstance(made, str):
        return made
    addition, rank = made
    if addition.alpha is not None:
        if math.prod(checkpoint.shape(addition.alpha)) != 1 or checkpoint.dtype(addition.alpha) is None:
            return f"{addition.alpha} is no number"
        return addition._replace(scale=1 / rank)
    if config is None:
        return addition if has_default_scale(factors) else UNKNOWN_SCALE
    scale = config.scale_of(factors.module, rank)
    return scale if isinstance(scale, str) else addition._replace(scale=scale)


class _Merger:
    """One pass over a model with adapters in it."""

    def __init__(self, checkpoint: Checkpoint, found: Found, weights: Mapping[str, str | None]):
        self._checkpoint = checkpoint
        self._found = found
        self._weight_of = weights
        self._quantised = quantised(checkpoint)
        self._weights = {name: Weight(checkpoint, name) for name in checkpoint.names()}
        self._unusable: dict[str, str] = {}
        self._inside: dict[str, list[str]] | None = None  # what wrapped modules have, made when it is first needed

    def merge(self) -> Checkpoint:
        config = config_of(self._checkpoint)
        for module, several in self._found.by_module.items():
            self._merge_module(module, several, config)
        for name, module in self._found.alone.items():
            self._set_aside(name, module, self._weight_of.get(module))
        self._take_trained_copies()
        self._refuse_other_adapters()
        return AdaptedCheckpoint(self._checkpoint, self._checkpoint, self._weights, self._unusable, self._notes())

    def _merge_module(self, module: str, several: list[Factors], config: AdapterConfig | None) -> None:
        weight = self._weight_of[module]
        if weight is None:
            self._refuse_parameters(module, several)
            return
        if weight in self._quantised or not is_floating(self._checkpoint.dtype(weight)):
            # That is the reason which pairing gives for it.
            result: Addition | str = f"LoRA factors of a weight of type {self._checkpoint.dtype_name(weight)}"
        elif len(several) > 1:
            adapters = listed(factors.adapter or "without a name" for factors in several)
            result = self._unusable[weight] = f"several unmerged LoRA adapters, of which none is chosen: {adapters}"
        else:
            result = scaled_addition(several[0], self._checkpoint, config, weight, self._checkpoint.shape(weight))
            if isinstance(result, str):
                self._unusable[weight] = result if "LoRA" in result else f"unmerged LoRA: {result}"
        for factors in several:
            for name in factors.tensors:
                if isinstance(result, str):
                    self._unusable[name] = f"part of {weight}: {result}"
                else:
                    del self._weights[name]
        if not isinstance(result, str):
            self._weights[weight] = Weight(self._checkpoint, weight, result)

    def _refuse_parameters(self, module: str, several: list[Factors]) -> None:
        """Sets aside factors without a weight, and what they may be for: the experts in one tensor of their module."""
        if self._inside is None:
            self._inside = {}
            for name in self._weights:
                before, mark, _ = name.partition(_INSIDE)
                if mark and "lora_" not in name:
                    self._inside.setdefault(before, []).append(name)
        for name in self._inside.get(module.partition(_INSIDE)[0], ()):
            if len(self._shape(name)) > 1:
                self._unusable[name] = "LoRA factors of a weight of several axes: only those of matrices are added"
        for name in (name for factors in several for name in factors.tensors):
            self._unusable[name] = f"LoRA factor of {module}, whose weight is not there"

    def _set_aside(self, name: str, module: str, weight: str | None) -> None:
        """Notes a part of an adapter that is no factor, such as a bias."""
        if weight is not None and self._weights[weight].addition is not None and len(self._shape(name)) == 1:
            del self._weights[name]
        elif name not in self._unusable:
            self._unusable[name] = f"part of an adapter of {module}"

    def _take_trained_copies(self) -> None:
        """Lists modules that were trained whole under the names that they have in the model."""
        copies: dict[tuple[str, str], list[re.Match[str]]] = {}
        for name in list(self._weights):
            match = _TRAINED.fullmatch(name) if ".modules_to_save." in name else None
            if match is not None:
                copies.setdefault((match["module"], match["rest"]), []).append(match)
        for (module, rest), several in copies.items():
            original, name = f"{module}.original_module.{rest}", f"{module}.{rest}"
            if len(several) > 1 or name in self._weights:
                adapters = listed(match["adapter"] for match in several)
                for tensor in [original, *(match.string for match in several)]:
                    self._unusable[tensor] = f"several trained copies of {name}, of which none is chosen: {adapters}"
                continue
            self._weights[name] = self._weights.pop(several[0].string)
            self._weights.pop(original, None)

    def _refuse_other_adapters(self) -> None:
        """Sets aside the weights of wrapped modules whose adapters are of another kind."""
        wrapped = {
            name.removesuffix(_WRAPPED): name
            for name, weight in self._weights.items()
            if name.endswith(_WRAPPED) and weight.addition is None and name not in self._unusable
        }
        beside: dict[str, str] = {}
        for name in self._weights if wrapped else ():
            place = name.rfind(".") if name not in self._unusable else -1
            while place > 0:
                module, rest = name[:place], name[place:]
                if module in wrapped and not rest.startswith(".base_layer."):
                    beside.setdefault(module, name)
                place = name.rfind(".", 0, place)
        for module, other in beside.items():
            if is_floating(self._checkpoint.dtype(wrapped[module])):
                self._unusable[wrapped[module]] = f"an adapter that is not understood is beside it: {other}"

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def _notes(self) -> list[str]:
        """What to say of the checkpoint as a whole."""
        count = sum(weight.addition is not None for weight in self._weights.values())
        parts = ("part of", "LoRA factor of")
        left = [reason for name, reason in self._unusable.items() if not reason.startswith(parts)]
        notes = [f"{count} weights are read with the LoRA factors beside them added"] if count else []
        if left:
            notes.append(f"{len(left)} weights have adapters that cannot be added and are not compared: {left[0]}")
        return notes
