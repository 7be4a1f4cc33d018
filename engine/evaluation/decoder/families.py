"""From config.json to a decoder: one record for each family, with what its configuration leaves unsaid.

The defaults are those of the configuration classes in transformers (models/<family>/configuration_<family>.py), which
published configurations rely on: Gemma 3's do not even give the number of heads.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from polarax.errors import UsageError
from polarax.evaluation.decoder.config import DecoderConfig
from polarax.evaluation.decoder.rotary import Rotary, rotary_from

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_LOCAL = "sliding_attention"  # of `layer_types`
_GLOBAL = "full_attention"


class Family(NamedTuple):
    """What the models of a family have in common."""

    defaults: Mapping[str, Any] = {}  # settings of config.json that may be left out
    query_bias: bool = False
    query_key_norms: bool = False
    gemma: bool = False  # scaled embeddings, norms stored as their difference from 1, GELU
    post_norms: bool = False
    local_layers: int = 0  # of as many layers all but the last see a window; 1: all layers do
    window_switch: bool = False  # `use_sliding_window` says whether there is a window at all
    caps: bool = False  # attention scores are bounded


_GEMMA: Mapping[str, Any] = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_QWEN = {"rope_theta": 10_000.0, "max_window_layers": 28, "sliding_window": 4096}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family({"num_key_value_heads": 8, "sliding_window": 4096}, local_layers=1),
    "qwen2": Family(_QWEN, query_bias=True, window_switch=True),
    "qwen3": Family(_QWEN | {"head_dim": 128}, query_key_norms=True, window_switch=True),
    "gemma": Family(_GEMMA, gemma=True),
    "gemma2": Family(
        {
            **_GEMMA,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        gemma=True,
        post_norms=True,
        local_layers=2,
        caps=True,
    ),
    "gemma3": Family(
        {
            **_GEMMA,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        query_key_norms=True,
        gemma=True,
        post_norms=True,
        local_layers=6,
    ),
}
"""The families, by what config.json calls them (`model_type`)."""

_SAME = {"gemma3_text": "gemma3", "ministral": "mistral"}


def decoder_config(settings: Mapping[str, Any], vocabulary: int, subject: str) -> DecoderConfig:
    """What a configuration says of a decoder; what its stored weights say is not looked at.

    Args:
        settings: config.json of the language model, under the names of transformers.
        vocabulary: Rows of the embedding.
        subject: Whose it is, for messages.

    Raises:
        UsageError: Of a family that is not known, or a setting is missing or not known.
    """
    name = str(settings.get("model_type"))
    name = _SAME.get(name, name)
    if name not in FAMILIES:
        raise UsageError(
            f"{subject}: architecture {name!r} is none that the decoder knows. It knows {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    given = {**family.defaults, **{key: value for key, value in settings.items() if value is not None}}
    if "sliding_window" in settings and settings["sliding_window"] is None:
        given.pop("sliding_window", None)
    heads = _whole(given, "num_attention_heads", subject)
    hidden = _whole(given, "hidden_size", subject)
    layers = _whole(given, "num_hidden_layers", subject)
    head_size = given.get("head_dim") or hidden // heads
    key_heads = given.get("num_key_value_heads") or heads
    if heads % key_heads:
        raise UsageError(f"{subject}: {heads} heads cannot share {key_heads} heads of keys.")
    types = _layer_types(family, given, layers)
    rotaries = _rotaries(given, head_size, subject)
    scalar = given.get("query_pre_attn_scalar") or head_size
    return DecoderConfig(
        family=name,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        units=_whole(given, "intermediate_size", subject),
        epsilon=float(given.get("rms_norm_eps", 1e-6)),
        rotaries=rotaries,
        rotary_of_layer=tuple(int(kind == _LOCAL) % len(rotaries) for kind in types),
        windows=tuple(int(given.get("sliding_window") or 0) if kind == _LOCAL else 0 for kind in types),
        activation=_activation(family, given, subject),
        tied=bool(given.get("tie_word_embeddings", False)),
        query_bias=family.query_bias,
        query_key_norms=family.query_key_norms,
        post_norms=family.post_norms,
        norm_offset=1.0 if family.gemma else 0.0,
        embedding_scale=hidden**0.5 if family.gemma else 1.0,
        attention_scale=scalar**-0.5,
        attention_cap=float(given.get("attn_logit_softcapping") or 0.0) if family.caps else 0.0,
        final_cap=float(given.get("final_logit_softcapping") or 0.0),
    )


def _whole(settings: Mapping[str, Any], name: str, subject: str) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{subject}: its configuration has no {name}.")
    return value


def _layer_types(family: Family, settings: Mapping[str, Any], layers: int) -> list[str]:
    """Which layers see a window, and which see all."""
    types = settings.get("layer_types")
    if isinstance(types, list) and len(types) >= layers:
        return types[:layers]
    if family.window_switch:
        first = settings["max_window_layers"] if settings.get("use_sliding_window") else layers
        return [_LOCAL if layer >= first else _GLOBAL for layer in range(layers)]
    period = family.local_layers
    if period > 2 and isinstance(settings.get("sliding_window_pattern"), int):
        period = settings["sliding_window_pattern"]
    if period <= 1:
        return [_LOCAL if period else _GLOBAL] * layers
    return [_LOCAL if (layer + 1) % period else _GLOBAL for layer in range(layers)]


def _rotaries(settings: Mapping[str, Any], head_size: int, subject: str) -> tuple[Rotary, ...]:
    """The rotary positions of layers that see all and, if they have their own, of those that see a window."""
    positions = int(settings.get("max_position_embeddings", 2**31 - 1))
    theta = float(settings.get("rope_theta", 10_000.0))
    given = settings.get("rope_parameters") or settings.get("rope_scaling")
    by_type = given if isinstance(given, Mapping) and isinstance(given.get(_GLOBAL), Mapping) else {}
    kinds = {_GLOBAL: (by_type.get(_GLOBAL, given), theta)}
    if "rope_local_base_freq" in settings:
        kinds[_LOCAL] = (by_type.get(_LOCAL), float(settings["rope_local_base_freq"]))
    rotaries = {
        kind: rotary_from(scaling, base, head_size, positions, subject) for kind, (scaling, base) in kinds.items()
    }
    return tuple(rotaries.values())


def _activation(family: Family, settings: Mapping[str, Any], subject: str) -> str:
    """The gate's; what Gemma's `hidden_act` says has never been true (it is why there is `hidden_activation`)."""
    name = settings.get("hidden_activation" if family.gemma else "hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise UsageError(f"{subject}: activation {name!r} is not known. Expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]
