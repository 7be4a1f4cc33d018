"""One model in the forms that different tools save it in: the same matrices, of the same layers, roles and experts."""

import collections

import numpy as np
import pytest

from polarax.loaders.matrices import read_views, take_inventory
from tests.loaders.model_forms import MODELS, FormCheckpoint, forms

# What a form does not hold, though another one of the same model does.
MISSING = {"transformers, AutoModel": {"head"}, "GGUF": {"token_type", "pooler"}}


def matrices_of(form, config):
    """The contents of every matrix whose role is known, by what it is."""
    checkpoint = FormCheckpoint(form)
    found = collections.defaultdict(list)
    views = [view for views in take_inventory(checkpoint, config=config).views.values() for view in views]
    for view, read in zip(views, read_views(views, checkpoint), strict=True):
        if view.role != "other":
            matrix = read.result()
            assert matrix.shape == view.shape
            found[view.layer, view.role, view.expert].append(np.ascontiguousarray(matrix).tobytes())
    return {identity: sorted(contents) for identity, contents in found.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_form_holds_the_same_matrices(name):
    config = MODELS[name].config
    saved = dict(forms(name))
    expected = matrices_of(saved.pop("transformers 4"), config)
    assert len(saved) >= 3
    for tool, form in saved.items():
        found = matrices_of(form, config)
        missing = MISSING.get(tool, set())
        of_tool = {identity: contents for identity, contents in expected.items() if identity[1] not in missing}
        found = {identity: contents for identity, contents in found.items() if identity[1] not in missing}
        assert found.keys() == of_tool.keys(), tool
        assert found == of_tool, tool


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_form_is_a_matrix_or_truly_none(name):
    for tool, form in forms(name).items():
        inventory = take_inventory(FormCheckpoint(form), config=MODELS[name].config)
        for tensor, reason in inventory.reasons.items():
            shape = form.tensors[tensor].shape
            convolution = len(shape) > 3 and "patch_embed" in tensor
            vector = len(shape) == 1 or tensor.endswith("bias")
            assert (convolution or vector) and reason.endswith("not a matrix"), (tool, tensor, reason)


@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-3B", "LLaVA-1.5-7B"])
def test_a_tower_for_images_is_no_part_of_the_layers(name):
    """Its matrices are the same in every form that has it, fused ones in their parts, and have no role."""
    contents = []
    for tool, form in forms(name).items():
        if tool == "GGUF":
            continue
        checkpoint = FormCheckpoint(form)
        views = [view for views in take_inventory(checkpoint).views.values() for view in views]
        others = [view for view in views if view.role == "other"]
        assert {view.layer for view in others} == {None}
        contents.append(sorted(np.ascontiguousarray(view.read(checkpoint).result()).tobytes() for view in others))
    assert contents[0] and all(same == contents[0] for same in contents)
