"""Weights of one byte with scales, against NumPy with ml_dtypes: stored number times repeated scale, in float32."""

import json

import flax.traverse_util
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from polarax.loaders import CheckpointError, Wanted, open_checkpoint, pair_checkpoints, read_views, write_checkpoint

F8 = ml_dtypes.float8_e4m3fn
E5 = ml_dtypes.float8_e5m2
BF16 = ml_dtypes.bfloat16
F32 = np.float32


def weight(shape, dtype=F8, seed=0):
    """Numbers of one byte of every size."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == np.int8:
        return rng.integers(-128, 128, shape, np.int8)
    return (rng.normal(size=shape) * 40).astype(dtype)


def scale(shape, dtype=F32, seed=1):
    return np.asarray(np.random.default_rng(seed).lognormal(size=shape) * 1e-3).astype(dtype)


def meant(stored, scales, *blocks):
    """The numbers that a weight means: every scale repeated along each axis, and cut off at the end."""
    for axis, block in enumerate(blocks):
        scales = np.repeat(scales, block, axis)
    return stored.astype(F32) * scales[tuple(map(slice, stored.shape))].astype(F32)


CASES = {
    "blocks that do not divide": ((300, 200), (3, 2), (128, 128)),
    "one block": ((100, 60), (1, 1), (128, 128)),
    "partly one block": ((100, 300), (1, 3), (128, 128)),
    "blocks of 64": ((130, 200), (3, 4), (64, 64)),
    "parts of rows": ((7, 256), (7, 2), (1, 128)),
    "a row at a time": ((70, 40), (70, 1), (1, 40)),
    "a column at a time": ((70, 40), (1, 40), (70, 1)),
    "experts in blocks": ((3, 200, 150), (3, 2, 2), (1, 128, 128)),
    "experts with one scale each": ((3, 20, 15), (3, 1, 1), (1, 20, 15)),
    "experts row by row": ((3, 20, 15), (3, 20, 1), (1, 1, 15)),
    "experts in blocks that they share": ((3, 200, 150), (1, 2, 2), (3, 128, 128)),
}
INDICES = [
    None,
    slice(5, 23),
    slice(None, None, -3),
    (slice(1, 3), slice(2, 9, 2)),
    (slice(None), slice(140, None)),
    slice(4, 4),
]


def saved(save, path, stored, scales, name="l.weight", ending="_scale_inv"):
    return str(save(path / "m.safetensors", {name: stored, name + ending: scales, "l.bias": np.ones(3, F32)}))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [F8, E5])
def test_a_weight_is_what_is_stored_times_its_scale(save, tmp_path, case, dtype):
    shape, scale_shape, blocks = CASES[case]
    stored, scales = weight(shape, dtype), scale(scale_shape)
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales))
    expected = meant(stored, scales, *blocks)
    assert checkpoint.names() == ("l.bias", "l.weight")
    assert "l.weight_scale_inv" not in checkpoint
    assert checkpoint.dtype("l.weight") == F32
    assert checkpoint.dtype_name("l.weight") == f"{np.dtype(dtype).name}, scaled"
    assert checkpoint.nbytes("l.weight") == stored.nbytes + scales.nbytes
    for index in INDICES:
        wanted = expected[index] if index is not None else expected
        np.testing.assert_array_equal(checkpoint.read("l.weight", index).result(), wanted, strict=True)
        out = np.full((*wanted.shape[:-1], 2 * wanted.shape[-1]), np.nan, F32)[..., ::2]  # not contiguous
        assert checkpoint.read_into("l.weight", out, index).result() is out
        np.testing.assert_array_equal(out, wanted)

    np.testing.assert_array_equal(checkpoint.read("l.weight", slice(0, 2)).result(), expected[:2])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [F8, np.int8])
@pytest.mark.parametrize("scale_dtype", [F32, BF16, np.float16])
def test_one_scale_for_all(save, tmp_path, shape, dtype, scale_dtype):
    stored, scales = weight((30, 40), dtype), scale(shape, scale_dtype)
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales, ending="_scale"))
    expected = stored.astype(F32) * F32(scales.item())
    np.testing.assert_array_equal(checkpoint.read("l.weight", slice(3, 9)).result(), expected[3:9], strict=True)


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
@pytest.mark.parametrize("dtype", [F8, np.int8])
def test_one_scale_for_each_row(save, tmp_path, shape, dtype):
    stored, scales = weight((30, 30), dtype), scale(shape)
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales, ending="_scale"))
    expected = stored.astype(F32) * scales.reshape(30, 1)
    np.testing.assert_array_equal(checkpoint.read("l.weight").result(), expected)


def test_one_scale_for_each_expert_of_one_axis(save, tmp_path):
    stored, scales = weight((3, 8, 5)), scale((3,))
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales, "mlp.experts.down_proj"))
    expected = stored.astype(F32) * scales[:, None, None]
    np.testing.assert_array_equal(checkpoint.read("mlp.experts.down_proj").result(), expected)


def test_every_number_of_a_byte(save, tmp_path):
    for dtype in (F8, E5, np.int8):
        stored = np.arange(256, dtype=np.uint8).view(dtype).reshape(16, 16)
        scales = np.array(0.3, F32)
        checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales, ending="_scale"))
        np.testing.assert_array_equal(checkpoint.read("l.weight").result(), stored.astype(F32) * scales)


def test_scales_that_are_no_numbers_or_zero(save, tmp_path):
    stored = weight((256, 256))
    scales = np.array([[np.nan, 0], [np.inf, 3e38]], F32)
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales))
    with np.errstate(all="ignore"):
        expected = meant(stored, scales, 128, 128)
    found = checkpoint.read("l.weight").result()
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found[:128, :128]).all() and not found[:128, 128:].any() and np.isinf(found[128:, 128:]).any()


def test_mistrals_names(save, tmp_path):
    stored, scales = weight((8, 6)), scale(())
    arrays = {"layers.0.attention.wq.weight": stored, "layers.0.attention.wq.qscale_weight": scales}
    arrays["layers.0.attention.wq.qscale_act"] = np.ones((), F32)
    checkpoint = open_checkpoint(str(save(tmp_path / "consolidated.safetensors", arrays)))
    found = checkpoint.read("layers.0.attention.wq.weight").result()
    np.testing.assert_array_equal(found, stored.astype(F32) * scales)


@pytest.mark.parametrize(
    ("config", "block"),
    [
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 48]}}, (32, 48)),
        ({"text_config": {"quantization_config": {"weight_block_size": [32, 48]}}}, (32, 48)),
        (
            {"quantization_config": {"config_groups": {"group_0": {"weights": {"block_structure": [32, 48]}}}}},
            (32, 48),
        ),
        ({"quantization_config": {"config_groups": {"group_0": {"weights": {"group_size": 48}}}}}, (1, 48)),
    ],
)
def test_the_block_size_is_what_the_configuration_says(save, tmp_path, config, block):
    stored = weight((100, 200))
    scales = scale(tuple(-(-size // side) for size, side in zip(stored.shape, block, strict=True)))
    path = saved(save, tmp_path, stored, scales)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = open_checkpoint(path).read("l.weight", slice(10, 90)).result()
    np.testing.assert_array_equal(found, meant(stored, scales, *block)[10:90])


def test_kernels_of_flax_are_turned_with_their_scales(tmp_path, save):
    stored = weight((8, 8))  # (in, out)
    for scales in map(scale, [(8,), (1, 8), (8, 1), ()]):
        expected = stored.astype(F32) * scales
        tree = {"params": {"dense": {"kernel": stored, "kernel_scale": scales}}}
        checkpoint = open_checkpoint(tree)
        assert checkpoint.names() == ("dense.kernel",)
        np.testing.assert_array_equal(checkpoint.read("dense.kernel").result(), expected.T)
        np.testing.assert_array_equal(checkpoint.read("dense.kernel", slice(1, 3)).result(), expected.T[1:3])
        flat = {".".join(keys): leaf for keys, leaf in flax.traverse_util.flatten_dict(tree["params"]).items()}
        file = save(tmp_path / "flat.safetensors", flat)
        np.testing.assert_array_equal(open_checkpoint(str(file)).read("dense.kernel").result(), expected)
    stored, scales = weight((300, 200)), scale((3, 2))
    tree = {"kernel": stored, "kernel_scale": scales}
    found = open_checkpoint(tree).read("kernel", slice(100, 180)).result()
    np.testing.assert_array_equal(found, meant(stored, scales, 128, 128).T[100:180])


def test_an_orbax_tree(tmp_path):
    stored, scales = weight((6, 4)), scale((4,))
    tree = {"dense": {"kernel": jnp.asarray(stored), "kernel_scale": jnp.asarray(scales)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree)
    checkpoint = open_checkpoint(str(tmp_path / "tree"))
    assert checkpoint.names() == ("dense.kernel",)
    np.testing.assert_array_equal(checkpoint.read("dense.kernel").result(), (stored.astype(F32) * scales).T)


@pytest.fixture
def fused():
    """Phi-3's fused projections: queries, keys and values begin in the middle of blocks."""
    shapes = {"self_attn.qkv_proj": (72, 48), "mlp.gate_up_proj": (200, 48), "self_attn.o_proj": (48, 48)}
    arrays, plain = {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        stored, scales = weight(shape, seed=number), scale(tuple(-(-size // 32) for size in shape), seed=number)
        name = f"model.layers.0.{name}.weight"
        arrays |= {name: stored, name + "_scale_inv": scales}
        plain[name] = meant(stored, scales, 32, 32)
    return arrays, plain


def test_parts_of_fused_weights(save, tmp_path, fused):
    arrays, plain = fused
    config = {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 48, "model_type": "phi3"}
    for folder, content in (("scaled", arrays), ("plain", plain)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "model.safetensors", content)
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    scaled, meaning = (open_checkpoint(str(tmp_path / folder)) for folder in ("scaled", "plain"))
    pairs, skipped = pair_checkpoints(scaled, meaning)
    assert [pair.role for pair in pairs] == ["gate", "up", "o", "q", "k", "v"] and skipped == []
    assert {(pair.stored_base, pair.stored_post) for pair in pairs} == {("float8_e4m3fn, scaled", "float32")}
    views = [pair.base for pair in pairs]
    for pair, read in zip(pairs, read_views(views, scaled), strict=True):
        np.testing.assert_array_equal(read.result(), pair.post.read(meaning).result())


def test_only_the_rows_and_scales_asked_for_are_read(save, tmp_path):
    stored, scales = weight((512, 384)), scale((4, 3))
    checkpoint = open_checkpoint(saved(save, tmp_path, stored, scales))
    assert checkpoint.read_bytes(Wanted("l.weight")) == stored.nbytes + scales.nbytes
    assert checkpoint.read_bytes(Wanted("l.weight", slice(130, 140))) == 10 * 384 + 1 * 3 * 4
    assert checkpoint.read_bytes(Wanted("l.weight", slice(120, 140))) == 20 * 384 + 2 * 3 * 4
    assert checkpoint.read_bytes(Wanted("l.bias")) == 12


def test_weights_and_scales_are_read_together_over_http(web):
    web.root.joinpath("m").mkdir()
    arrays, expected, files = {}, {}, {}
    for index in range(6):
        name = f"model.layers.{index}.mlp.down_proj.weight"
        stored, scales = weight((200, 140), seed=index), scale((2, 2), seed=index)
        arrays |= {name: stored, name + "_scale_inv": scales}
        expected[name] = meant(stored, scales, 128, 128)
        files |= dict.fromkeys((name, name + "_scale_inv"), f"model-{index // 3}.safetensors")
    files["model.layers.0.mlp.down_proj.weight_scale_inv"] = "model-1.safetensors"  # not where its weight is
    for file in set(files.values()):
        content = {name: array for name, array in arrays.items() if files[name] == file}
        safetensors.numpy.save_file(content, web.root / "m" / file)
    (web.root / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    config = {"quantization_config": {"weight_block_size": [128, 128]}}
    (web.root / "m" / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(web.url + "m/")
    assert set(checkpoint.names()) == set(expected)
    before = len(web.requests)
    outs = [np.full((200, 140), np.nan, F32) for _ in expected]
    reads = checkpoint.read_many([Wanted(name, None, out) for name, out in zip(expected, outs, strict=True)])
    for name, read, out in zip(expected, reads, outs, strict=True):
        assert read.result() is out
        np.testing.assert_array_equal(out, expected[name])
    assert len(web.requests) - before == 2


def test_a_scale_that_many_share_is_read_once(web):
    stored = weight((64, 8, 6))
    arrays = {"experts.down_proj": stored, "experts.down_proj_scale": np.array([0.5], F32)}
    safetensors.numpy.save_file(arrays, web.root / "m.safetensors")
    checkpoint = open_checkpoint(web.url + "m.safetensors")
    before = len(web.requests)
    wanted = [Wanted("experts.down_proj", (slice(index, index + 1),)) for index in range(64)]
    found = np.concatenate([read.result() for read in checkpoint.read_many(wanted)])
    np.testing.assert_array_equal(found, stored.astype(F32) / 2)
    assert len(web.requests) - before == 1


def test_a_file_that_is_gone_is_an_error_that_names_it(save, tmp_path):
    path = saved(save, tmp_path, weight((4, 4)), scale(()))
    checkpoint = open_checkpoint(path)
    (tmp_path / "m.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        checkpoint.read("l.weight").result()


def test_a_place_that_does_not_fit_is_refused(save, tmp_path):
    checkpoint = open_checkpoint(saved(save, tmp_path, weight((4, 4)), scale(())))
    with pytest.raises(ValueError, match=r"'l.weight': out must be float32 of shape \(4, 4\)"):
        checkpoint.read_into("l.weight", np.empty((4, 4), F8))
    with pytest.raises(CheckpointError, match=r"no tensor 'l.weight_scale_inv'"):
        checkpoint.read("l.weight_scale_inv")


def test_the_fingerprint_notices_another_scale(save, tmp_path):
    prints = set()
    for seed in range(2):
        path = saved(save, tmp_path, weight((4, 4)), scale((), seed=seed))
        prints.add(open_checkpoint(path).fingerprint())
    assert len(prints) == 2


def test_tied_weights_are_one_array_with_one_scale():
    stored, scales = weight((8, 4)), scale(())
    tree = {"model.embed_tokens.weight": stored, "model.embed_tokens.weight_scale": scales, "lm_head.weight": stored}
    same = open_checkpoint(tree | {"lm_head.weight_scale": scales})
    other = open_checkpoint(tree | {"lm_head.weight_scale": scale((), seed=9)})
    assert same.shares_values("lm_head.weight", "model.embed_tokens.weight")
    assert not other.shares_values("lm_head.weight", "model.embed_tokens.weight")
    assert not open_checkpoint(tree).shares_values("lm_head.weight", "model.embed_tokens.weight")


class TestWriting:
    @pytest.fixture
    def source(self, save, tmp_path):
        return open_checkpoint(saved(save, tmp_path, weight((4, 4)), scale(())))

    def test_a_scaled_weight_is_not_replaced(self, source, tmp_path):
        problem = r"tensor 'l.weight' is float8_e4m3fn, scaled, which cannot be written"
        with pytest.raises(CheckpointError, match=problem):
            write_checkpoint(source, tmp_path / "out", {"l.weight": np.ones((4, 4), F32)})
        with pytest.raises(CheckpointError, match="no tensor 'l.weight_scale_inv'"):
            write_checkpoint(source, tmp_path / "out", {"l.weight_scale_inv": np.ones((), F32)})
        assert not (tmp_path / "out").exists()

    def test_other_tensors_are_and_it_stays_as_it_was(self, source, tmp_path):
        write_checkpoint(source, tmp_path / "out", {"l.bias": np.full(3, 7, F32)})
        again = open_checkpoint(str(tmp_path / "out"))
        np.testing.assert_array_equal(again.read("l.bias").result(), [7, 7, 7])
        np.testing.assert_array_equal(again.read("l.weight").result(), source.read("l.weight").result())
