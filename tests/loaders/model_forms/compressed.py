"""Forms of tools that run models on one machine: mlx and llama.cpp (GGUF).

Names: `sanitize` of the models in mlx_lm/models and mlx_vlm/models; for GGUF the map of the `gguf` package, and for
what its converter does to the arrays `modify_tensors` of the models in llama.cpp.
"""

import re
from collections.abc import Callable

import gguf
import numpy as np

from tests.loaders.model_forms.models import HEADS, HIDDEN, KEY_LATENT, UNROTATED, Model
from tests.loaders.model_forms.torch_tools import Converted, Tensors, is_text, rename, stack_experts


def absorbed(tensors: Tensors, key: str, value: str) -> dict[str, np.ndarray]:
    """Latent attention whose second matrix is two: keys (heads, latent, size), values (heads, size, latent)."""
    out = {}
    for name, array in tensors.items():
        if name.endswith("self_attn.kv_b_proj.weight"):
            heads = array.reshape(HEADS, -1, KEY_LATENT)
            out[name.replace("kv_b_proj", key)] = heads[:, :UNROTATED].swapaxes(1, 2)
            out[name.replace("kv_b_proj", value)] = heads[:, UNROTATED:]
        else:
            out[name] = array
    return out


_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")  # GPT-2's, (in, out)


def mlx(model: Model, tensors: Tensors) -> Converted:
    """As mlx-lm and mlx-vlm save models."""
    if model.family in ("bert", "t5", "falcon"):
        return None
    out = stack_experts(tensors)
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    bank = re.compile(r"(.*)\.experts\.(\w+)")
    out = {
        bank.sub(lambda match: f"{match[1]}.switch_mlp.{names.get(match[2], match[2])}.weight", name): array
        for name, array in out.items()
    }
    if model.family == "deepseek_v2":
        out = absorbed(out, "embed_q", "unembed_out")
    elif model.family == "gpt2":
        out = {f"model.{name}": array.T if _CONV1D.fullmatch(name) else array for name, array in out.items()}
    elif model.family == "gpt_neox":
        out = rename(out, (r"gpt_neox\.layers\.", "model.h."), (r"gpt_neox\.", "model."), ("", "model."))
    elif model.family in ("qwen2_vl", "qwen2_5_vl"):
        out = rename(out, ("visual", "vision_tower"), ("", "language_model."))
    return out, model.config


def _in_blocks(model: Model, array: np.ndarray) -> np.ndarray:
    """All queries, then all keys, then all values, of rows that alternate head by head."""
    if model.family == "gpt_neox":
        heads = array.reshape(HEADS, 3, HIDDEN // HEADS, *array.shape[1:])
        return heads.swapaxes(0, 1).reshape(array.shape)
    return array  # this Falcon's are in blocks already


def gguf_file(model: Model, tensors: Tensors) -> Converted:
    """As llama.cpp's converter writes the language model."""
    if model.gguf is None:
        return None
    architecture = getattr(gguf.MODEL_ARCH, model.gguf)
    names = gguf.get_tensor_name_map(architecture, 64)
    text = {name: array for name, array in tensors.items() if is_text(name)}
    text = {name.removeprefix("language_model.").removeprefix("bert."): array for name, array in text.items()}
    text = stack_experts(absorbed(text, "k_b_proj", "v_b_proj"))
    out = {}
    for name, array in text.items():
        if model.gguf == "LLAMA":  # its map has Mixtral's experts under Meta's names
            name = name.replace("model.layers", "layers") if ".experts.w" in name else name
            name = name.replace("block_sparse_moe.experts", "feed_forward.experts")
        if model.family == "gpt2" and _CONV1D.fullmatch(name):
            array = array.T
        if "query_key_value" in name:
            array = _in_blocks(model, array)
        if "token_type_embeddings" in name or "pooler" in name:
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        out[new if new.endswith((".weight", ".bias")) else f"{new}.weight"] = array
    config = {"model_type": gguf.MODEL_ARCH_NAMES[architecture], "multi_query": False, "hidden_size": HIDDEN}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": model.config.get("num_key_value_heads")}
    if model.family == "falcon":
        heads["num_key_value_heads"] = 1
    sizes = {"head_dim": model.config.get("text_config", model.config).get("head_dim")}
    return out, {**config, **{name: value for name, value in {**heads, **sizes}.items() if value is not None}}


TOOLS: dict[str, Callable[[Model, Tensors], Converted]] = {"mlx": mlx, "GGUF": gguf_file}
