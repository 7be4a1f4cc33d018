"""A model pairs with itself in whatever forms two tools have saved it, matrix by matrix."""

import itertools

import numpy as np
import pytest

from polarax.loaders import Pairing, read_views
from tests.loaders.model_forms import MODELS, Form, FormCheckpoint, forms

# What one form has and another one of the same model may lack: a model without its head, GGUF's own choice. GGUF has
# towers in a file of their own, and MaxText has none.
_HEADS = ("lm_head", "embed_out", "logits_dense", "output.weight", "predictions", "score")
_NOT_IN_GGUF = ("token_type", "pooler", "visual", "vision_tower", "projector")
_MOST_TENSORS = 4000  # of larger models some pairs of forms stand for all
_SOME = {("transformers 4", "mlx"), ("transformers 5", "GGUF"), ("vLLM", "a trainer's student")}


@pytest.mark.parametrize("name", MODELS)
def test_any_two_forms_pair_completely(name):
    saved = {tool: FormCheckpoint(form) for tool, form in forms(name).items()}
    large = any(len(form.names()) > _MOST_TENSORS for form in saved.values())
    for number, tools in enumerate(itertools.combinations(saved, 2)):
        if large and tools not in _SOME:
            continue
        tools = tools[::-1] if number % 2 else tools
        base, post = (saved[tool] for tool in tools)
        pairs, skipped, _ = Pairing(base).pair(post)
        alone = [row for row in skipped if "not a matrix" not in row.reason and not row.reason.startswith("tied")]
        allowed = _HEADS if "GGUF" not in tools else _HEADS + _NOT_IN_GGUF
        assert [row for row in alone if not any(word in row.name for word in allowed)] == [], tools
        some = pairs[:: max(1, len(pairs) // 200)]
        reads = [
            read_views([getattr(pair, side) for pair in some], saved[tool])
            for side, tool in zip(("base", "post"), tools, strict=True)
        ]
        for pair, one, other in zip(some, *reads, strict=True):
            np.testing.assert_array_equal(one.result(), other.result(), err_msg=f"{tools}: {pair.name}")


# Names that torchtitan, as Meta before it, gives to what transformers calls otherwise.
_META = {
    "model.": "",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Llama-3.1-8B"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_names_of_torchtitan_pair_with_every_form(name, prefix):
    """Queries and keys too, whose rows are in another order: each view puts them back."""
    saved = dict(forms(name))
    heads = MODELS[name].config["num_attention_heads"], MODELS[name].config["num_key_value_heads"]
    tensors = {}
    for tensor, array in saved["transformers 4"].tensors.items():
        for theirs, own in _META.items():
            tensor = tensor.replace(theirs, own)
        for role, count in zip(("wq.weight", "wk.weight"), heads, strict=True):
            if tensor.endswith(role):
                rows, columns = array.shape
                halves = array.reshape(count, 2, rows // count // 2, columns)
                array = halves.swapaxes(1, 2).reshape(rows, columns)
        tensors[prefix + tensor] = array
    titan = FormCheckpoint(Form(tensors, MODELS[name].config))
    for tool, form in saved.items():
        for base, post in ((titan, FormCheckpoint(form)), (FormCheckpoint(form), titan)):
            pairs, skipped, _ = Pairing(base).pair(post)
            alone = [row for row in skipped if "not a matrix" not in row.reason]
            assert [row for row in alone if not any(word in row.name for word in _HEADS)] == [], tool
            for pair in pairs:
                np.testing.assert_array_equal(pair.base.read(base).result(), pair.post.read(post).result())
