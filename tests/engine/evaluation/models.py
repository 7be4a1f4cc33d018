"""Tiny random models of every family: config.json as it is published, tensors under the names of transformers."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

VOCABULARY = 96
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_GEMMA = {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "rope_theta": 500.0, "rope_scaling": _LLAMA3},
    "llama_biases": {
        **_SIZES,
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 10,
        "tie_word_embeddings": True,
    },
    "llama_linear": {
        **_SIZES,
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    },
    "llama_dynamic": {
        **_SIZES,
        "model_type": "llama",
        "max_position_embeddings": 20,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "llama_yarn": {**_SIZES, "model_type": "llama", "rope_theta": 1000.0, "rope_scaling": _YARN},
    "mistral": {**_SIZES, "model_type": "mistral", "sliding_window": 9},
    "mistral_all": {**_SIZES, "model_type": "mistral", "sliding_window": None, "num_key_value_heads": 4},
    "qwen2": {
        **_SIZES,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3": {**_SIZES, "model_type": "qwen3", "head_dim": 12, "rope_theta": 1e6},
    "gemma": {**_SIZES, **_GEMMA, "model_type": "gemma"},
    "gemma2": {**_SIZES, **_GEMMA, "model_type": "gemma2", "sliding_window": 8, "query_pre_attn_scalar": 24},
    "gemma3": {
        **_SIZES,
        **_GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a model, float32; attention sharp enough that a wrong angle or window is seen."""
    rng = np.random.default_rng(seed)
    hidden, units, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim", hidden // heads)
    queries, keys = heads * size, config["num_key_value_heads"] * size
    kind = config["model_type"].partition("_")[0]

    def matrix(rows: int, cols: int) -> np.ndarray:
        return (1.5 * rng.normal(size=(rows, cols)) / cols**0.5).astype(np.float32)

    def norm(length: int) -> np.ndarray:
        return (0.3 * rng.normal(size=length) + (not kind.startswith("gemma"))).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        for name, shape in shapes.items():
            found[f"{prefix}self_attn.{name}_proj.weight"] = matrix(*shape)
            if config.get("attention_bias") or (kind == "qwen2" and name != "o"):
                found[f"{prefix}self_attn.{name}_proj.bias"] = 0.3 * rng.normal(size=shape[0]).astype(np.float32)
        if kind in ("qwen3", "gemma3"):
            found |= {f"{prefix}self_attn.{name}_norm.weight": norm(size) for name in "qk"}
        for name, shape in {"gate": (units, hidden), "up": (units, hidden), "down": (hidden, units)}.items():
            found[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape)
            if config.get("mlp_bias"):
                found[f"{prefix}mlp.{name}_proj.bias"] = 0.3 * rng.normal(size=shape[0]).astype(np.float32)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind in ("gemma2", "gemma3"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        found |= {f"{prefix}{name}.weight": norm(hidden) for name in norms}
    found["model.norm.weight"] = norm(hidden)
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return found


def save(folder: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """A checkpoint as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def text(count: int, seed: int = 1, rows: tuple[int, ...] = ()) -> np.ndarray:
    """Tokens at random."""
    return np.random.default_rng(seed).integers(VOCABULARY, size=(*rows, count)).astype(np.int32)
