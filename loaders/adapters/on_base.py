"""An adapter that is saved alone, read as the model that it makes of its base.

PEFT saves the factors, and what was trained whole, into `adapter_model.safetensors` with `adapter_config.json` beside
it (`get_peft_model_state_dict` in peft/utils/save_and_load.py), other libraries into files of their own names.
"""

from collections.abc import Mapping, Sequence

from polarax.loaders.adapters.adapted_checkpoint import AdaptedCheckpoint, Weight
from polarax.loaders.adapters.adapter_config import AdapterConfig
from polarax.loaders.adapters.addition import Addition
from polarax.loaders.adapters.factor_names import PREFIX, Factors, find_factors, model_name_of
from polarax.loaders.adapters.modules import Modules
from polarax.loaders.adapters.unmerged import config_of, is_alone, scaled_addition
from polarax.loaders.checkpoint import BASE_OWN, Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating
from polarax.loaders.formats.foreign import listed
from polarax.loaders.quantisation import quantised

_TOKENS = ".token_adapter.trainable_tokens_delta"
# What a file of another kind of adapter has, all of whose names would else say nothing.
_PROMPTS = ("prompt_embeddings",)


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is an adapter alone, without the model that it is for."""
    if isinstance(checkpoint, AdaptedCheckpoint):
        return False
    names = checkpoint.names()
    found = find_factors(names)
    if found.by_module:
        return is_alone(checkpoint, found)
    of_peft = bool(names) and all(name.startswith(PREFIX) or name in _PROMPTS for name in names)
    return of_peft and (checkpoint.adapter_config or {}).get("peft_type") is not None


def on_base(post: Checkpoint, base: Checkpoint) -> Checkpoint:
    """What an adapter makes of its base; any other checkpoint, or an adapter beside another one, as it is.

    The result has the base's names. Adapted weights are read as W + scale B A, tensors that the adapter has whole as
    the adapter's, and all others are unusable, as they are the base's own.

    Args:
        post: The adapter.
        base: The model that it was trained on.

    Raises:
        CheckpointError: If the base is an adapter and the post is a model, the adapter is for another base or for
            modules that the base does not have, its scale is not known, or it is of another kind than LoRA.
    """
    if is_adapter(base):
        if is_adapter(post):
            return post
        raise CheckpointError(
            f"{base.location}: is an adapter alone; give the model it was trained on as the base, and the adapter as "
            f"a post"
        )
    return _Merger(post, base).merge() if is_adapter(post) else post


class _Merger:
    """One adapter and its base."""

    def __init__(self, adapter: Checkpoint, base: Checkpoint):
        self._adapter, self._base = adapter, base
        names = base.names()
        self._modules = Modules((name, name) for name in names)
        # Of parameters that are experts in one tensor, the module is what holds them.
        self._holders = Modules((name.rpartition(".")[0], name) for name in names if len(base.shape(name)) > 2)
        self._quantised = quantised(base)
        self._weights = {name: Weight(base, name) for name in base.names()}
        self._unusable = dict.fromkeys(base.names(), BASE_OWN)
        self._missing: list[str] = []
        self._adapted: dict[str, str] = {}  # the module of each weight that something is added to

    def merge(self) -> Checkpoint:
        config = config_of(self._adapter)
        if config is not None:
            self._check(config)
        found = find_factors(self._adapter.names())
        parts = {name for several in found.by_module.values() for factors in several for name in factors.tensors}
        for name in self._adapter.names():
            if name not in parts and name not in found.alone:
                self._take_whole(name)
        fitting = {module: self._fitting(several, config) for module, several in found.by_module.items()}
        chosen = self._modules.choose(fitting)
        for module, additions in fitting.items():
            self._add(module, {name: additions[name] for name in chosen[module]})
        for name, module in found.alone.items():
            if module not in found.by_module:
                raise self._error(f"tensor {name!r} has no other half")
        if self._missing:
            raise self._error(self._not_there())
        count = sum(weight.addition is not None for weight in self._weights.values())
        notes = [f"LoRA factors of {count} weights are added to {self._base.location}"]
        return AdaptedCheckpoint(self._base, self._adapter, self._weights, self._unusable, notes)

    def _check(self, config: AdapterConfig) -> None:
        if config.refusal:
            raise self._error(f"is an adapter of the kind {config.refusal}: only those of LoRA are read")
        if config.changes_base:
            raise self._error(f"{config.changes_base}: what it makes of the base cannot be told from its factors")

    def _fitting(self, several: Sequence[Factors], config: AdapterConfig | None) -> dict[str, Addition | None]:
        """The weights that may be those of a module, by name and shape, with what is added to each."""
        factors, module = several[0], model_name_of(several[0].module)
        if len(several) > 1:
            tensors = listed(factors.a for factors in several)
            raise self._error(f"has several adapters for {module}, expected one: {tensors}")
        names = self._modules.find(module)
        if not names:
            held = self._holders.find(module.removesuffix(".base_layer"))
            for name in held:
                self._unusable[name] = "LoRA factors of a weight of several axes: only those of matrices are added"
            self._missing += [] if held else [module]
        results = {name: self._addition(factors, config, name) for name in names}
        fitting = {name: addition for name, addition in results.items() if not isinstance(addition, str)}
        if results and not fitting:
            raise self._error(f"{module}: {next(iter(results.values()))}")
        return fitting

    def _add(self, module: str, additions: Mapping[str, Addition | None]) -> None:
        module = model_name_of(module)
        if len(additions) > 1:
            raise self._error(f"{module} may be any of {listed(additions)} of {self._base.location}")
        for name, addition in additions.items():
            if self._adapted.setdefault(name, module) != module:
                raise self._error(f"{self._adapted[name]} and {module} are both {name} of {self._base.location}")
            self._weights[name] = self._weights[name]._replace(addition=addition)
            self._unusable.pop(name, None)

    def _addition(self, factors: Factors, config: AdapterConfig | None, name: str) -> Addition | str | None:
        """What is added to a weight; why it does not fit; None if it fits, for all that is known, and is quantised."""
        checkpoint, tensor, _ = self._weights[name]
        if name in self._quantised or not is_floating(checkpoint.dtype(tensor)):
            return None
        return scaled_addition(factors, self._adapter, config, name, checkpoint.shape(tensor))

    def _take_whole(self, name: str) -> None:
        """Puts a tensor that the adapter has whole in place of the base's; one that the base lacks is listed."""
        if name.endswith(_TOKENS):
            for weight in self._modules.find(name.removesuffix(_TOKENS)):
                self._unusable[weight] = f"some of its tokens are trained ({name}), which is not read"
            return
        stored = Weight(self._adapter, name)
        own = model_name_of(name).replace(".base_layer.", ".")
        names = self._modules.find(own)
        if not names:
            self._weights[own] = stored
            return
        if len(names) > 1:
            raise self._error(f"{own} may be any of {listed(names)} of {self._base.location}")
        weight = names[0]
        shape, of_base = self._adapter.shape(name), self._base.shape(weight)
        if len(shape) != len(of_base) or shape[1:] != of_base[1:]:  # a vocabulary may have grown
            raise self._error(f"is for another base: {weight} has shape {of_base} there, {name} {shape}")
        self._weights[weight] = stored
        self._unusable.pop(weight, None)

    def _not_there(self) -> str:
        names = sorted(self._missing)
        nearest = ", ".join(self._modules.nearest(names[0]))
        return (
            f"is an adapter for modules that {self._base.location} does not have: {listed(names)}; the nearest names "
            f"there are {nearest}"
        )

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._adapter.location}: {message}")
