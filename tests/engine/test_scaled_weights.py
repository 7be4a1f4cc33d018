"""A comparison of FP8 with the bfloat16 that it was made from: the same as of the float32 that the FP8 means."""

import json

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

import polarax

F8 = ml_dtypes.float8_e4m3fn
BLOCK = 16
# DeepSeek-V3 in small: latent attention, a dense layer, a router, experts one by one; blocks are cut short at the end.
ATTENTION = {"q_a_proj": (24, 40), "q_b_proj": (40, 24), "kv_a_proj_with_mqa": (24, 40), "o_proj": (40, 24)}
EXPERTS = {"gate_proj": (24, 40), "up_proj": (24, 40), "down_proj": (40, 24)}


def quantise(matrix):
    """The largest number of each block becomes 448, as DeepSeek does it; gives what is stored and its scales."""
    rows, columns = (-(-size // BLOCK) for size in matrix.shape)
    stored, scales = np.empty(matrix.shape, F8), np.empty((rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            place = np.s_[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            scales[row, column] = np.abs(matrix[place]).max() / 448
            stored[place] = (matrix[place] / scales[row, column]).astype(F8)
    return stored, scales


def dequantise(stored, scales):
    """In float32, element by element."""
    meant = np.empty(stored.shape, np.float32)
    for row, column in np.ndindex(*stored.shape):
        meant[row, column] = np.float32(stored[row, column]) * scales[row // BLOCK, column // BLOCK]
    return meant


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("deepseek")
    shapes = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}.weight": shape for name, shape in ATTENTION.items()}
        places = [f"experts.{expert}." for expert in range(3)] if layer else [""]
        shapes |= {f"{prefix}mlp.{place}{name}.weight": s for place in places for name, s in EXPERTS.items()}
    original, fp8, meant = {}, {}, {}
    for name, shape in shapes.items():
        original[name] = rng.normal(size=shape).astype(ml_dtypes.bfloat16)
        fp8[name], fp8[name + "_scale_inv"] = quantise(original[name].astype(np.float32))
        meant[name] = dequantise(fp8[name], fp8[name + "_scale_inv"])
    router = {"model.layers.1.mlp.gate.weight": rng.normal(size=(24, 40)).astype(ml_dtypes.bfloat16)}
    kinds = {"original": original | router, "fp8": fp8 | router, "meant": meant | router}
    for kind, arrays in kinds.items():
        (folder / kind).mkdir()
        # Sharded, and not every scale beside its weight.
        names, weight_map = sorted(arrays), {}
        for shard, cut in enumerate((names[:19], names[19:])):
            file = f"model-{shard + 1:05d}-of-00002.safetensors"
            safetensors.numpy.save_file({name: arrays[name] for name in cut}, folder / kind / file)
            weight_map |= dict.fromkeys(cut, file)
        (folder / kind / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "deepseek_v3", "quantization_config": {"weight_block_size": [BLOCK, BLOCK]}}
    (folder / "fp8" / "config.json").write_text(json.dumps(config))
    return {kind: str(folder / kind) for kind in kinds}


def rows(base, post, out=None):
    run = polarax.compare(base, post, out, progress=False, dtype="float64")
    return run.frame(), run.skipped()


@pytest.mark.parametrize("of_base", [True, False])
def test_results_are_those_of_the_numbers_that_are_meant(checkpoints, of_base):
    pairs = [(checkpoints[kind], checkpoints["original"])[:: 1 if of_base else -1] for kind in ("fp8", "meant")]
    (scaled, skipped), (plain, skipped_plain) = (rows(*pair) for pair in pairs)
    assert len(scaled) == 2 * 4 + 3 + 9 + 1 and len(skipped) == len(skipped_plain) == 0
    own, other = ("dtype_base", "dtype_post") if of_base else ("dtype_post", "dtype_base")
    of_router = scaled["name"].str.contains("mlp.gate.weight")
    assert set(scaled[own][~of_router]) == {"float8_e4m3fn, scaled"} and set(scaled[other]) == {"bfloat16"}
    # What is known of floating-point types alone, and the type itself.
    of_type = ["dtype_base", "dtype_post", "rounding_share", "nf_rounding", "spectral_norm_rounding", "rank_change"]
    assert scaled.loc[~of_router, of_type[2:]].isna().all(axis=None)
    assert plain.loc[~of_router, "rounding_share"].notna().all()
    pd.testing.assert_frame_equal(scaled.drop(columns=of_type), plain.drop(columns=of_type), check_exact=True)
    # FP8 has three bits after the leading one: relative errors up to 1/16, some 2.6% in the mean.
    assert scaled["drift"][~of_router].between(0.02, 0.03).all()


def test_a_run_is_gone_on_with_and_notices_another_scale(checkpoints, tmp_path):
    base, post = checkpoints["fp8"], checkpoints["original"]
    first, _ = rows(base, post, tmp_path / "run")
    again, _ = rows(base, post, tmp_path / "run")
    pd.testing.assert_frame_equal(first, again)
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    tree = {key: np.asarray(value) for key, value in load(base).items()}
    polarax.compare(tree, post, tmp_path / "other", progress=False)
    tree[name] = tree[name] * 2
    with pytest.raises(polarax.UsageError, match="fingerprint"):
        polarax.compare(tree, post, tmp_path / "other", progress=False)


def load(folder):
    """Every stored tensor, scales and all."""
    checkpoint = polarax.open_checkpoint(folder).stored
    return {name: checkpoint.read(name).result() for name in checkpoint.names()}
