"""Forms of JAX's tools: MaxText, with its layers one by one and in one array.

Names: the parameter maps from and to Hugging Face in MaxText's checkpoint conversion (param_mapping.py).
"""

import re
from collections.abc import Callable

import numpy as np

from tests.loaders.model_forms.models import HEADS, HIDDEN, Model
from tests.loaders.model_forms.torch_tools import Converted, Tensors, stack_experts

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_LATENT = {"q_a_proj": "wq_a", "q_b_proj": "wq_b", "kv_a_proj_with_mqa": "wkv_a", "kv_b_proj": "wkv_b"}
_LATENT_NORMS = {"q_a_layernorm": "q_norm", "kv_a_layernorm": "kv_norm"}
_UNITS = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo", "w1": "wi_0", "w3": "wi_1", "w2": "wo"}
_BLOCKS = {"mixtral": "MoeBlock_0", "qwen3_moe": "moe_block", "deepseek_v2": "DeepSeekMoeBlock_0.MoeBlock_0"}
_IN_HEADS = {"query", "key", "value", "wq_b", "wkv_b"}


def _kernel(module: str, array: np.ndarray) -> np.ndarray:
    """A kernel (in, out), with heads apart where MaxText has them so."""
    kernel = array.T
    if module in _IN_HEADS:
        size = 6 if module in ("query", "key", "value") else kernel.shape[1] // HEADS
        return kernel.reshape(kernel.shape[0], -1, size)
    return kernel.reshape(HEADS, -1, HIDDEN) if module == "out" else kernel


def _in_layer(family: str, name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """MaxText's name and array of a tensor in a layer; None for norms, which this leaves out."""
    parts = name.split(".")
    if parts[-1] == "bias":
        module = _ATTENTION[parts[1]]
        return f"self_attention.{module}.bias", array.reshape(-1, 6)
    if array.ndim == 1:
        return None
    if parts[0] == "self_attn":
        module = (_ATTENTION | _LATENT)[parts[1]]
        return f"self_attention.{module}.kernel", _kernel(module, array)
    block = _BLOCKS.get(family, "")
    if "experts" in parts:
        return f"{block}.{_UNITS[parts[-1]]}", array.swapaxes(1, 2)
    if parts[1] == "gate":
        return f"{block}.gate.kernel", array.T
    if parts[1] == "shared_experts":
        return f"DeepSeekMoeBlock_0.shared_experts.{_UNITS[parts[2]]}.kernel", array.T
    return f"mlp.{_UNITS[parts[1]]}.kernel", array.T


def _places(model: Model, scanned: bool) -> Callable[[int], tuple[str, int]]:
    """Where a layer is: the container, and the number in it."""
    layers = model.config["num_hidden_layers"]
    if model.family == "deepseek_v2":
        return lambda layer: ("dense_layers", 0) if layer == 0 else ("moe_layers", layer - 1)
    if model.family == "gemma3_text" and scanned:  # blocks of five local layers and a global one
        whole = layers // 6
        return lambda layer: (
            (f"layers.layers_{layer % 6}", layer // 6)
            if layer < 6 * whole
            else (f"layers_remainder.layers_{layer % 6}", 0)
        )
    if model.family == "gemma2":
        return lambda layer: (f"layers#{('local', 'global')[layer % 2]}", layer // 2)
    return lambda layer: ("layers", layer)


def _maxtext(model: Model, tensors: Tensors, scanned: bool) -> Converted:
    if not model.maxtext:
        return None
    place = _places(model, scanned)
    out: dict[str, np.ndarray] = {"params.token_embedder.embedding": tensors["model.embed_tokens.weight"]}
    if "lm_head.weight" in tensors:
        out["params.decoder.logits_dense.kernel"] = tensors["lm_head.weight"].T
    stacks: dict[str, list[np.ndarray]] = {}
    for name, array in stack_experts(tensors).items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*?)(?:\.weight)?", name)
        found = _in_layer(model.family, match[2], array) if match else None
        if match is None or found is None:
            continue
        container, number = place(int(match[1]))
        container, _, turn = container.partition("#")
        inner, array = found
        if turn:  # Gemma 2: two layers of different names make one
            module, _, rest = inner.partition(".")
            inner = f"{module}_{turn}.{rest}"
        if not scanned:
            out[f"params.decoder.{container}_{number}.{inner}"] = array
        elif container.startswith("layers_remainder"):
            out[f"params.decoder.{container}.{inner}"] = array
        else:
            stacks.setdefault(f"params.decoder.{container}.{inner}", []).append(array)
    out |= {name: np.stack(arrays, axis=1) for name, arrays in stacks.items()}
    return out, None


def maxtext(model: Model, tensors: Tensors) -> Converted:
    """MaxText with each layer by itself."""
    return _maxtext(model, tensors, scanned=False)


def maxtext_scanned(model: Model, tensors: Tensors) -> Converted:
    """MaxText with the layers in one array, along its second axis."""
    return _maxtext(model, tensors, scanned=True)


TOOLS: dict[str, Callable[[Model, Tensors], Converted]] = {"MaxText": maxtext, "MaxText, scanned": maxtext_scanned}
