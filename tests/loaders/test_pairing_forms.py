"""A model pairs with itself in whatever forms two tools have saved it, matrix by matrix."""

import itertools

import numpy as np
import pytest

from polarax.loaders import Pairing, read_views
from tests.loaders.model_forms import MODELS, FormCheckpoint, forms

# What one form has and another one of the same model may lack: a model without its head, GGUF's own choice. GGUF has
# towers in a file of their own, and MaxText has none.
_HEADS = ("lm_head", "embed_out", "logits_dense", "output.weight", "predictions", "score")
_NOT_IN_GGUF = ("token_type", "pooler", "visual", "vision_tower", "projector")
_MOST_TENSORS = 4000  # of larger models some pairs of forms stand for all
_SOME = {("transformers 4", "mlx"), ("GGUF", "transformers 5"), ("vLLM", "a trainer's student")}


@pytest.mark.parametrize("name", MODELS)
def test_any_two_forms_pair_completely(name):
    saved = {tool: FormCheckpoint(form) for tool, form in forms(name).items()}
    large = any(len(form.names()) > _MOST_TENSORS for form in saved.values())
    for tools in itertools.permutations(saved, 2):
        if large and tools not in _SOME:
            continue
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
