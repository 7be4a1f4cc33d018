"""Forms of PyTorch's tools: transformers 5, vLLM, PEFT, and what wraps modules.

Names: conversion_mapping.py and the `_checkpoint_conversion_mapping` of models in transformers;
`packed_modules_mapping`, `stacked_params_mapping`, `hf_to_vllm_mapper` and FusedMoE in vLLM.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.loaders.model_forms.models import Model

Tensors = Mapping[str, np.ndarray]
Converted = tuple[dict[str, np.ndarray], Mapping[str, Any] | None] | None

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def stack_experts(tensors: Tensors) -> dict[str, np.ndarray]:
    """One array (experts, out, in) for the same matrix of all experts, named without the number and ".weight"."""
    banks: dict[str, list[np.ndarray]] = {}
    others = {}
    for name, array in tensors.items():
        match = EXPERT.fullmatch(name)
        if match:
            banks.setdefault(f"{match[1]}.{match[3]}", []).append(array)
        else:
            others[name] = array
    return {**others, **{name: np.stack(arrays) for name, arrays in banks.items()}}


def fuse(tensors: Tensors, parts: tuple[str, ...], fused: str, axis: int = 0) -> dict[str, np.ndarray]:
    """Concatenates tensors whose names differ in the word `parts` has for each, under one name with `fused`."""
    out = dict(tensors)
    for name in tensors:
        if parts[0] not in name:
            continue
        names = [name.replace(parts[0], part) for part in parts]
        if all(part in tensors for part in names):
            out[name.replace(parts[0], fused)] = np.concatenate([out.pop(part) for part in names], axis=axis)
    return out


def rename(tensors: Tensors, *replacements: tuple[str, str]) -> dict[str, np.ndarray]:
    """Every name with the first of the regular expressions that matches at its beginning replaced."""
    renamed = {}
    for name, array in tensors.items():
        for pattern, new in replacements:
            if re.match(pattern, name):
                name = re.sub(pattern, new, name, count=1)
                break
        renamed[name] = array
    return renamed


def is_text(name: str) -> bool:
    """Whether a tensor is the language model's."""
    return not name.startswith(("visual.", "vision_tower.", "multi_modal_projector."))


def transformers_5(model: Model, tensors: Tensors) -> Converted:
    """As transformers 5 has models in memory, and saves them if it is not asked for the original format."""
    out = dict(tensors)
    if model.family == "mixtral":
        out = {name.replace("block_sparse_moe", "mlp"): array for name, array in out.items()}
    out = stack_experts(out)
    out = fuse(out, (".experts.gate_proj", ".experts.up_proj"), ".experts.gate_up_proj", axis=1)
    out = fuse(out, (".experts.w1", ".experts.w3"), ".experts.gate_up_proj", axis=1)
    out = {name.replace(".experts.w2", ".experts.down_proj"): array for name, array in out.items()}
    if model.family in ("qwen2_vl", "qwen2_5_vl"):
        out = rename(out, ("visual", "model.visual"), (r"model\.", "model.language_model."))
    elif model.family == "llava":
        out = rename(
            out,
            (r"language_model\.model\.", "model.language_model."),
            (r"language_model\.lm_head", "lm_head"),
            (r"vision_tower\.vision_model\.", "model.vision_tower."),
            ("", "model."),
        )
    elif model.family == "gpt_neox":
        out = rename(out, ("embed_out", "lm_head"))
    return (out, model.config) if set(out) != set(tensors) else None


def without_head(model: Model, tensors: Tensors) -> Converted:
    """As AutoModel saves it: the model inside, without its head and without the head's prefix."""
    prefixes = ("model.", "transformer.", "gpt_neox.", "bert.")
    if model.family in ("qwen2_vl", "qwen2_5_vl", "llava", "gpt2", "t5"):
        return None
    out = {name.partition(".")[2]: array for name, array in tensors.items() if name.startswith(prefixes)}
    return out, model.config


_FUSED_BY_VLLM = (
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj"),
    (("self.query", "self.key", "self.value"), "self.qkv_proj"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"),
    (("shared_expert.gate_proj", "shared_expert.up_proj"), "shared_expert.gate_up_proj"),
    (("shared_experts.gate_proj", "shared_experts.up_proj"), "shared_experts.gate_up_proj"),
    (("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"), "self_attn.fused_qkv_a_proj"),
)


def vllm(model: Model, tensors: Tensors) -> Converted:
    """As vLLM saves its state; what it reorders within a matrix of unchanged name is left out."""
    if model.family in ("gpt_neox", "falcon", "t5"):  # the rows of queries, keys and values in another order; no T5
        return None
    out = stack_experts(tensors)
    for gate, up, down in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")):
        out = fuse(out, (f".experts.{gate}", f".experts.{up}"), ".experts.w13_weight", axis=1)
        out = {re.sub(rf"\.experts\.{down}$", ".experts.w2_weight", name): array for name, array in out.items()}
    for parts, fused in _FUSED_BY_VLLM:
        out = fuse(out, parts, fused)
    if model.family == "gpt2":
        conv = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
        out = {f"transformer.{name}": array.T if conv.fullmatch(name) else array for name, array in out.items()}
    elif model.family in ("qwen2_vl", "qwen2_5_vl"):
        out = rename(out, (r"model\.", "language_model.model."))
    elif model.family == "bert":
        out = rename(out, (r"bert\.", "model."))
    return out, model.config


def peft(model: Model, tensors: Tensors) -> Converted:
    """As PEFT has a model whose attention was adapted and whose adapters are in another file."""
    adapted = re.compile(r".*\b(q_proj|v_proj|query_key_value|c_attn|query|value|qkv_proj|q)\.(?=weight|bias)")

    def name_of(name: str) -> str:
        return "base_model.model." + adapted.sub(lambda match: f"{match[0]}base_layer.", name)

    return {name_of(name): array for name, array in tensors.items()}, model.config


def wrapped(model: Model, tensors: Tensors) -> Converted:
    """As FSDP, activation checkpointing, DistributedDataParallel and torch.compile name what they wrap."""
    layer = re.compile(r"\.(layers|h|layer|block|blocks)\.(\d+)\.")
    inner = r".\1.\2._fsdp_wrapped_module._checkpoint_wrapped_module."
    out = {f"_orig_mod.module.{layer.sub(inner, f'.{name}')[1:]}": array for name, array in tensors.items()}
    return out, model.config


def student(model: Model, tensors: Tensors) -> Converted:
    """As a distillation trainer keeps a model in its own."""
    return {f"student.{name}": array for name, array in tensors.items()}, model.config


TOOLS: dict[str, Callable[[Model, Tensors], Converted]] = {
    "transformers 5": transformers_5,
    "transformers, AutoModel": without_head,
    "vLLM": vllm,
    "PEFT": peft,
    "FSDP and torch.compile": wrapped,
    "a trainer's student": student,
}
