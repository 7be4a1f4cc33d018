"""adapter_config.json: what a low-rank adapter's product is multiplied by, and whether it is more than a product.

The fields are those of PEFT's LoraConfig, and of MLX, whose `lora_parameters` give the scale as it is.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from polarax.loaders.adapters.factor_names import model_name_of
from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.config import ADAPTER_CONFIG as NAME

UNKNOWN_SCALE = f"unmerged LoRA factors of unknown scale: {NAME} is missing beside the weights"
"""Why a weight cannot be had whose factors are there."""

# Settings of PEFT by which the weight is no longer W + scale B A, and what each is called.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Ways to start that take something off the base's weights, which the file of the adapter does not have.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterConfig(NamedTuple):
    """What the file says, checked."""

    location: str  # for messages
    scale: float | None  # of every module, if there is one number for all
    rank: float | None
    alpha: float | None
    root: bool  # alpha is divided by the rank's square root (rank-stabilised LoRA)
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    transposed: bool  # weights are stored as (in, out): PEFT's fan_in_fan_out
    refusal: str  # what it is instead of LoRA; empty if it is LoRA
    changes_base: str  # what changes the base's weights before training; empty if nothing does

    def scale_of(self, module: str, rank: int) -> float | str:
        """What B A of a module is multiplied by; or why that is not known.

        Args:
            module: Its name, as the adapter spells it.
            rank: Of its factors.
        """
        if self.scale is not None:
            return self.scale
        module = model_name_of(module)
        alpha = self._of_pattern(self.alpha_pattern, module, self.alpha)
        said = self._of_pattern(self.rank_pattern, module, self.rank)
        if alpha is None:
            return f"LoRA factors of unknown scale: {NAME} has no lora_alpha"
        if said is not None and said != rank:
            return f"LoRA factors of rank {rank}, of which {NAME} says that it is {said:g}"
        return alpha / (math.sqrt(rank) if self.root else rank)

    def _of_pattern(self, patterns: Mapping[str, float], module: str, default: float | None) -> float | None:
        """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise CheckpointError(f"{self.location}: pattern {pattern!r} cannot be used: {error}") from error
        return default


def parse_adapter_config(settings: Mapping[str, Any], location: str) -> AdapterConfig:
    """Checks what adapter_config.json says.

    Args:
        settings: The object in it.
        location: The file, for messages.

    Raises:
        CheckpointError: A number is none.
    """
    number = _Numbers(location)
    of_mlx = settings.get("lora_parameters")
    scale = None
    if isinstance(of_mlx, Mapping):
        rank, scale = number.read(of_mlx, "rank"), number.read(of_mlx, "scale")
        alpha = number.read(of_mlx, "alpha")
        if scale is not None and alpha is not None and rank:  # of early versions, which had both
            scale *= alpha / rank
    return AdapterConfig(
        location,
        scale,
        number.read(settings, "r"),
        number.read(settings, "lora_alpha"),
        settings.get("use_rslora") is True,
        number.table(settings, "rank_pattern"),
        number.table(settings, "alpha_pattern"),
        settings.get("fan_in_fan_out") is True,
        _refusal(settings),
        _changed_base(settings),
    )


def _refusal(settings: Mapping[str, Any]) -> str:
    kind = settings.get("peft_type", settings.get("fine_tune_type", "LORA"))
    if str(kind).upper() != "LORA":
        return str(kind)
    variants = [name for setting, name in _VARIANTS.items() if settings.get(setting) not in (None, False)]
    return variants[0] if variants else ""


def _changed_base(settings: Mapping[str, Any]) -> str:
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        return f"was started with {start}, which changes the base's weights"
    if settings.get("layer_replication"):
        return "repeats layers of the base (layer_replication)"
    return ""


class _Numbers:
    """Reads numbers out of a JSON object."""

    def __init__(self, location: str):
        self._location = location

    def read(self, settings: Mapping[str, Any], key: str) -> float | None:
        value = settings.get(key)
        return None if value is None else self._check(value, key)

    def table(self, settings: Mapping[str, Any], key: str) -> dict[str, float]:
        table = settings.get(key) or {}
        if not isinstance(table, Mapping):
            raise CheckpointError(f"{self._location}: {key} must be an object of numbers. Got {table!r}")
        return {pattern: self._check(value, f"{key} of {pattern!r}") for pattern, value in table.items()}

    def _check(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(f"{self._location}: {key} must be a number. Got {value!r}")
        return float(value)
