"""The decoders again, in NumPy and float64, a layer and a head at a time, as the papers have them."""

import math
from typing import Any, NamedTuple

import numpy as np


class Outputs(NamedTuple):
    """Of one row of tokens."""

    scores: np.ndarray  # (length, vocabulary)
    states: list[np.ndarray]  # of the embedding and after each layer, (length, hidden)
    attention: np.ndarray  # (layers, heads, length, length)


def decode(config: dict[str, Any], tensors: dict[str, np.ndarray], tokens: np.ndarray) -> Outputs:
    """Runs a model on one row of tokens."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    kind = config["model_type"].partition("_")[0]
    gemma = kind.startswith("gemma")
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]

    def norm(x, name):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x * (weights[f"{name}.weight"] + gemma)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    x = weights["model.embed_tokens.weight"][tokens] * (math.sqrt(config["hidden_size"]) if gemma else 1)
    states, attention = [x], []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        local = _is_local(config, kind, layer)
        y = norm(x, f"{prefix}input_layernorm")
        heads_of = {name: linear(y, f"{prefix}self_attn.{name}_proj").reshape(len(tokens), -1, size) for name in "qkv"}
        if kind in ("qwen3", "gemma3"):
            heads_of |= {name: norm(heads_of[name], f"{prefix}self_attn.{name}_norm") for name in "qk"}
        angles, factor = _angles(config, kind, local, size, len(tokens))
        outs, looks = [], []
        for head in range(config["num_attention_heads"]):
            shared = head * config["num_key_value_heads"] // config["num_attention_heads"]
            q, k = _turned(heads_of["q"][:, head], angles, factor), _turned(heads_of["k"][:, shared], angles, factor)
            scores = q @ k.T / math.sqrt(config.get("query_pre_attn_scalar") or size)
            if kind == "gemma2":
                scores = 50 * np.tanh(scores / 50)
            back = np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens)))
            hidden = (back < 0) | (local & (back >= (config.get("sliding_window") or np.inf)))
            scores[hidden] = -np.inf
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            looks.append(chances)
            outs.append(chances @ heads_of["v"][:, shared])
        y = linear(np.concatenate(outs, axis=-1), f"{prefix}self_attn.o_proj")
        post = kind in ("gemma2", "gemma3")
        x = x + (norm(y, f"{prefix}post_attention_layernorm") if post else y)
        y = norm(x, f"{prefix}{'pre_feedforward' if post else 'post_attention'}_layernorm")
        gate = linear(y, f"{prefix}mlp.gate_proj")
        gate = (
            0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
            if gemma
            else gate / (1 + np.exp(-gate))
        )
        y = linear(gate * linear(y, f"{prefix}mlp.up_proj"), f"{prefix}mlp.down_proj")
        x = x + (norm(y, f"{prefix}post_feedforward_layernorm") if post else y)
        states.append(x)
        attention.append(looks)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    scores = norm(x, "model.norm") @ head.T
    if kind == "gemma2":
        scores = 30 * np.tanh(scores / 30)
    return Outputs(scores, states, np.array(attention))


def _is_local(config, kind, layer):
    if kind == "mistral":
        return True
    if kind == "qwen2":
        return layer >= config["max_window_layers"]
    return {"gemma2": layer % 2 == 0, "gemma3": layer % 6 != 5}.get(kind, False)


def _turned(x, angles, factor):
    """Pairs half a head apart, turned as complex numbers."""
    left, right = np.split(x, 2, axis=-1)
    turned = (left + 1j * right) * np.exp(1j * angles) * factor
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _angles(config, kind, local, size, length):
    """Angles by position and pair, and what sines are multiplied by."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = config.get("rope_theta") or scaling.get("rope_theta") or 10_000.0
    if kind == "gemma3" and local:
        theta, scaling = config["rope_local_base_freq"], {}
    name = scaling.get("rope_type") or scaling.get("type")
    places, factor = np.arange(size // 2), 1.0
    if name == "dynamic":
        grown = scaling["factor"] * max(length, config["max_position_embeddings"]) / config["max_position_embeddings"]
        theta = theta * (grown - scaling["factor"] + 1) ** (size / (size - 2))
    frequencies = theta ** (-2 * places / size)
    if name == "linear":
        frequencies = frequencies / scaling["factor"]
    if name == "llama3":
        for place, frequency in enumerate(frequencies):
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
            if turns < scaling["low_freq_factor"]:
                frequencies[place] = frequency / scaling["factor"]
            elif turns <= scaling["high_freq_factor"]:
                span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
                kept = (turns - scaling["low_freq_factor"]) / span
                frequencies[place] = (1 - kept) * frequency / scaling["factor"] + kept * frequency
    if name == "yarn":
        original = scaling["original_max_position_embeddings"]
        ends = [size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1)]
        low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), size - 1)
        ramp = np.clip((places - low) / max(high - low, 0.001), 0, 1)
        frequencies = frequencies * (1 - ramp) + frequencies / scaling["factor"] * ramp
        factor = 0.1 * math.log(scaling["factor"]) + 1
    return np.outer(np.arange(length), frequencies), factor
