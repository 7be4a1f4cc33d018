"""A comparison across formats: what matrices.csv says of a quantised file, and of parts of tensors."""

import gguf
import numpy as np
import pytest
import safetensors.numpy

import polarax

HIDDEN = 64


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """A fused layer in safetensors beside its parts, quantised, in GGUF."""
    folder = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(size=(HIDDEN, HIDDEN)).astype(np.float32) for name in ("q", "k", "v", "output")}
    base = {
        "model.layers.0.self_attn.qkv_proj.weight": np.concatenate([parts[role] for role in "qkv"]),
        "model.layers.0.self_attn.o_proj.weight": parts["output"],
    }
    safetensors.numpy.save_file(base, folder / "base.safetensors")
    writer = gguf.GGUFWriter(folder / "post.gguf", "phi3")
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, array in parts.items():
        writer.add_tensor(f"blk.0.attn_{name}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    run = polarax.compare(folder / "base.safetensors", folder / "post.gguf", metrics="change,scaling", progress=False)
    return run.frame()


def test_parts_of_a_tensor_are_rows_of_their_own(frame):
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    assert set(frame["name"]) == {*(f"{fused}[{role}]" for role in "qkv"), "model.layers.0.self_attn.o_proj.weight"}
    assert set(frame["role"]) == {"q", "k", "v", "o"}


def test_a_quantised_type_is_named_and_its_rounding_is_the_change(frame):
    assert set(frame["dtype_base"]) == {"float32"}
    assert set(frame["dtype_post"]) == {"Q4_1"}
    assert frame["drift"].between(0.07, 0.085).all()
    assert frame["rounding_share"].isna().all()
