"""GGUF files, written by the gguf package as llama.cpp's converter does."""

import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints

HEADS, KEYS, HIDDEN, UNITS, LAYERS = 4, 2, 64, 96, 2
TYPES = gguf.GGMLQuantizationType


def permuted(weight, heads):
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


@pytest.fixture(scope="module")
def llama():
    """A Llama under the names of Hugging Face."""
    rng = np.random.default_rng(0)
    size = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (96, HIDDEN), "lm_head.weight": (96, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        inside = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KEYS * size, HIDDEN),
            "self_attn.v_proj": (KEYS * size, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (UNITS, HIDDEN),
            "mlp.up_proj": (UNITS, HIDDEN),
            "mlp.down_proj": (HIDDEN, UNITS),
            "input_layernorm": (HIDDEN,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}


def gguf_name(name):
    outside = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    outside["model.norm.weight"] = "output_norm.weight"
    if name in outside:
        return outside[name]
    _, _, layer, inside = name.split(".", 3)
    return f"blk.{layer}.{NAMES[inside.removesuffix('.weight')]}.weight"


def write(path, tensors, kind=TYPES.F32, architecture="llama", heads=HEADS, keys=KEYS):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    for name, array in tensors.items():
        own = kind if array.ndim > 1 else TYPES.F32
        if own in (TYPES.F32, TYPES.F16):
            writer.add_tensor(name, array.astype({TYPES.F32: np.float32, TYPES.F16: np.float16}[own]))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(llama):
    """As the converter writes it: other names, the rows of queries and keys in another order."""
    tensors = {}
    for name, array in llama.items():
        heads = HEADS if "q_proj" in name else KEYS if "k_proj" in name else None
        tensors[gguf_name(name)] = permuted(array, heads) if heads else array
    return tensors


def test_a_converted_llama_is_the_original(llama, tmp_path):
    """By layer and role, for the two have no name in common; queries and keys in their first order."""
    checkpoint, original = open_checkpoint(write(tmp_path / "m.gguf", converted(llama))), open_checkpoint(llama)
    assert checkpoint.format == "GGUF"
    pairs, skipped = pair_checkpoints(original, checkpoint)
    assert {pair.name: pair.name_post for pair in pairs} == {
        name: gguf_name(name) for name, array in llama.items() if array.ndim == 2
    }
    for pair in pairs:
        np.testing.assert_array_equal(pair.post.read(checkpoint).result(), llama[pair.name])
        assert pair.stored_base == pair.stored_post == "float32"
    assert len(skipped) == 2 * (LAYERS + 1)
    assert {reason for _, reason in skipped} == {"1-D: not a matrix"}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_quantised_types_are_read_as_what_they_mean(llama, tmp_path, kind):
    name = "blk.0.ffn_gate.weight"
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", converted(llama), TYPES[kind]))
    original = llama["model.layers.0.mlp.gate_proj.weight"]
    plain = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}.get(kind)
    assert checkpoint.dtype(name) == (plain or np.dtype(np.float32))
    assert checkpoint.dtype_name(name) == (plain.name if plain else kind)
    assert checkpoint.nbytes(name) < original.nbytes
    read = checkpoint.read(name).result()
    assert read.dtype == checkpoint.dtype(name)
    expected = gguf.quants.dequantize(gguf.quants.quantize(original, TYPES[kind]), TYPES[kind])
    np.testing.assert_array_equal(read.astype(np.float32), expected)
    for index in (slice(3, 7), (slice(-1, None, -3), slice(5, 9)), (slice(None), slice(0, 1)), slice(0, 0), ()):
        np.testing.assert_array_equal(checkpoint.read(name, index).result(), read[index])
    pairs, _ = pair_checkpoints(open_checkpoint(llama), checkpoint)
    queries = next(pair for pair in pairs if pair.role == "q")
    assert queries.stored_post == checkpoint.dtype_name(name)
    error = queries.post.read(checkpoint).result().astype(np.float32) - llama[queries.name]
    assert 0 < np.linalg.norm(error) / np.linalg.norm(llama[queries.name]) < 0.15


def test_rows_of_reordered_queries_are_those_of_the_original(llama, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", converted(llama)))
    original = llama["model.layers.1.self_attn.k_proj.weight"]
    for index in (slice(1, 5), (slice(None, None, -1), slice(2))):
        np.testing.assert_array_equal(checkpoint.read("blk.1.attn_k.weight", index).result(), original[index])


@pytest.mark.parametrize("architecture", ["mistral3", "granitehybrid", "olmo", "deepseek", "bailingmoe", "llama-embed"])
def test_architectures_whose_converter_reorders_as_well(llama, tmp_path, architecture):
    """Classes of llama.cpp's conversion/*.py that call `permute`, or leave LlamaModel's `modify_tensors` as it is."""
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", converted(llama), architecture=architecture))
    for name in ("q_proj", "k_proj"):
        original = llama[f"model.layers.1.self_attn.{name}.weight"]
        np.testing.assert_array_equal(checkpoint.read(f"blk.1.attn_{name[0]}.weight").result(), original)


@pytest.mark.parametrize("architecture", ["qwen2", "llama4", "gemma2", "apertus", "afmoe", "deepseek2"])
def test_other_architectures_keep_their_order(llama, tmp_path, architecture):
    tensors = {gguf_name(name): array for name, array in llama.items()}
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", tensors, architecture=architecture))
    np.testing.assert_array_equal(
        checkpoint.read("blk.0.attn_q.weight").result(), llama["model.layers.0.self_attn.q_proj.weight"]
    )


def test_fused_matrices_and_experts(tmp_path):
    rng = np.random.default_rng(0)
    qkv, up = rng.normal(size=(128, 64)).astype(np.float32), rng.normal(size=(192, 64)).astype(np.float32)
    experts = rng.normal(size=(3, 96, 64)).astype(np.float32)
    tensors = {
        "blk.0.attn_qkv.weight": qkv,
        "blk.0.ffn_up.weight": up,
        "blk.0.ffn_down.weight": np.zeros((64, 96), np.float32),
        "blk.1.ffn_up_exps.weight": experts,
        "blk.1.ffn_gate.2.weight": up[:96],
    }
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", tensors, TYPES.Q8_0, architecture="phi3"))
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert skipped == []
    read = {pair.name: pair.base.read(checkpoint).result() for pair in pairs}
    whole = checkpoint.read("blk.0.attn_qkv.weight").result()
    np.testing.assert_array_equal(read["blk.0.attn_qkv.weight[k]"], whole[64:96])
    np.testing.assert_array_equal(read["blk.0.ffn_up.weight[up]"], checkpoint.read("blk.0.ffn_up.weight").result()[96:])
    bank = checkpoint.read("blk.1.ffn_up_exps.weight").result()
    np.testing.assert_array_equal(read["blk.1.ffn_up_exps.weight[expert=2]"], bank[2])
    assert {(pair.layer, pair.role, pair.expert) for pair in pairs if pair.layer == 1} == {
        (1, "up", 0),
        (1, "up", 1),
        (1, "up", 2),
        (1, "gate", 2),
    }


def test_latent_attention_in_two_parts(tmp_path):
    """DeepseekV2Model of llama.cpp's conversion/deepseek.py takes kv_b_proj apart, and turns its keys."""
    rng = np.random.default_rng(0)
    heads, nope, value, latent = 3, 4, 5, 6
    kv_b = rng.normal(size=(heads, nope + value, latent)).astype(np.float32)
    tensors = {
        "blk.2.attn_k_b.weight": np.ascontiguousarray(kv_b[:, :nope].swapaxes(1, 2)),
        "blk.2.attn_v_b.weight": np.ascontiguousarray(kv_b[:, nope:]),
    }
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", tensors, architecture="deepseek2"))
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert skipped == []
    read = {pair.role: pair.base.read(checkpoint).result() for pair in pairs}
    np.testing.assert_array_equal(read["k_b"], kv_b[:, :nope].reshape(-1, latent))
    np.testing.assert_array_equal(read["v_b"], kv_b[:, nope:].reshape(-1, latent))


def test_shards_and_folders(llama, tmp_path):
    tensors = converted(llama)
    names = list(tensors)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        write(tmp_path / f"m-{number:05}-of-00002.gguf", {name: tensors[name] for name in part})
    for source in (tmp_path, tmp_path / "m-00002-of-00002.gguf", (tmp_path / "m-00001-of-00002.gguf").as_uri()):
        assert open_checkpoint(source).names() == tuple(names)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"has several GGUF checkpoints; name one of them: m-00001-of-00002.gguf, o"
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"m-00001-of-00002.gguf: no such file; m-00002.* is one of 2 shards"):
        open_checkpoint(tmp_path / "m-00002-of-00002.gguf")


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("gguf") / "m.gguf", converted(llama), TYPES.Q4_0)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.05, 0.5, 0.9, 0.9999])
def test_a_file_that_is_cut_off(whole, tmp_path, share):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"m.gguf: is (not a GGUF file, or is damaged|truncated): ") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [4, 8, 16, 24, 40])
def test_a_damaged_header_is_an_error_or_another_file(whole, tmp_path, place):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
    with pytest.raises(CheckpointError, match="is not a GGUF file, or is damaged"):
        open_checkpoint(path)


def test_heads_that_do_not_divide_the_rows(llama, tmp_path):
    path = write(tmp_path / "m.gguf", converted(llama), heads=5)
    with pytest.raises(CheckpointError, match=r"tensor 'blk.0.attn_q.weight': 64 rows are no 5 heads of even size"):
        open_checkpoint(path)


def test_a_url(tmp_path):
    with pytest.raises(CheckpointError, match="GGUF is read from local files only"):
        open_checkpoint("http://127.0.0.1:1/m.gguf")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").touch()
    with pytest.raises(CheckpointError, match=r"reading GGUF needs the gguf package: pip install 'polarax\[gguf\]'"):
        open_checkpoint(tmp_path / "m.gguf")


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"m.gguf: no such file"):
        open_checkpoint(tmp_path / "m.gguf")


def test_reordered_rows_of_unknown_heads_are_refused(llama, tmp_path):
    """A file that does not say how many heads there are is compared with its like alone."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, array in converted(llama).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    pairs, skipped = pair_checkpoints(open_checkpoint(llama), checkpoint)
    refused = {name for name, reason in skipped if "rows of queries and keys are in another order" in reason}
    assert refused == {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(LAYERS) for name in "qk"}
    assert not {pair.name for pair in pairs} & refused
    assert len(pair_checkpoints(checkpoint, checkpoint)[0]) == len(pairs) + len(refused)
