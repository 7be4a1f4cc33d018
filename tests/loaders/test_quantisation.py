import json

import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import open_checkpoint, pair_checkpoints
from polarax.loaders.quantisation import quantised

F8 = ml_dtypes.float8_e4m3fn


def tree(dtypes):
    """A tree of 2 x 2 matrices by name and dtype."""
    return open_checkpoint({name: np.zeros((2, 2), dtype) for name, dtype in dtypes.items()})


@pytest.mark.parametrize(
    ("dtypes", "kind"),
    [
        (
            {"l.qweight": "i4", "l.qzeros": "i4", "l.scales": "f2", "l.g_idx": "i4"},
            "GPTQ or AWQ",
        ),
        ({"l.qweight": "i4", "l.qzeros": "i4", "l.scales": "f2"}, "GPTQ or AWQ"),
        ({"l.weight": "u1", "l.weight.absmax": "f4"}, "bitsandbytes 4-bit"),
        ({"l.weight": "u1", "l.weight.quant_state.bitsandbytes__nf4": "u1"}, "4-bit"),
        ({"l.weight": "i1", "l.SCB": "f4"}, "bitsandbytes 8-bit"),
        ({"l.weight_packed": "i4", "l.weight_scale": "f2"}, "compressed-tensors"),
        ({"mlp.up_blocks": "u1", "mlp.up_scales": "u1"}, "MXFP4"),
        ({"l.weight": F8, "l.scale": "f4"}, "float8_e4m3fn with the scale l.scale"),
        ({"l.kernel": F8, "l.scale": "f4"}, "float8_e4m3fn with the scale l.scale"),
        ({"l.weight": "i1", "l.weight_scale": "f4"}, "int8 with the scale l.weight_scale"),
    ],
)
def test_a_weight_and_its_companions_are_recognised(dtypes, kind):
    checkpoint = tree(dtypes)
    found = quantised(checkpoint)
    assert set(found) == set(checkpoint.names())
    weight, *companions = checkpoint.names()
    assert kind in found[weight]
    assert all(found[name].startswith(f"part of {weight} (") for name in companions)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert pairs == []
    assert all(reason.startswith("quantised: ") for _, reason in skipped)


def shaped(tensors):
    """A tree of zeros by name, dtype and shape; of no size in memory."""
    return open_checkpoint(
        {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (dtype, *shape) in tensors.items()}
    )


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"l.weight_scale_inv": ("f4", 3, 2)}, "l.weight_scale_inv, whose shape (3, 2) does not fit (256, 200)"),
        ({"l.weight_scale_inv": ("f4", 2, 2, 1)}, "l.weight_scale_inv, whose shape (2, 2, 1) does not fit (256, 200)"),
        ({"l.weight_scale": ("f4", 200)}, "l.weight_scale, whose shape (200,) does not fit (256, 200)"),
        ({"l.weight_scale": ("f4", 3)}, "l.weight_scale, whose shape (3,) does not fit (256, 200)"),
        # One scale for gate and one for up: 128 rows each, or not.
        ({"l.weight_scale": ("f4", 2, 1)}, "l.weight_scale, whose shape (2, 1) does not fit (256, 200)"),
        ({"l.weight_scale": ("f4", 0)}, "l.weight_scale, whose shape (0,) does not fit (256, 200)"),
        ({"l.weight_scale": ("u1", 256, 25)}, "l.weight_scale, which is of type uint8"),
        ({"l.weight_scale": (F8, 256, 25)}, "l.weight_scale, which is of type float8_e4m3fn"),
        (
            {"l.weight_scale": ("f4", 1), "l.weight_scale_inv": ("f4", 1)},
            "l.weight_scale and with l.weight_scale_inv",
        ),
        (
            {"l.weight_scale": ("f4", 1), "l.weight_zero_point": ("i1", 1)},
            "l.weight_scale and with l.weight_zero_point",
        ),
        ({"l.weight_scale": ("f4", 1), "l.weight_scale_2": ("f4", 1)}, "l.weight_scale and with l.weight_scale_2"),
        ({"l.weight_scale": ("f4", 1), "l.pre_quant_scale": ("f4", 200)}, "l.weight_scale and with l.pre_quant_scale"),
        ({"l.scale_weight": ("f4", 1)}, "l.scale_weight"),
        ({"l.weights_scaling_factor": ("f4", 1)}, "l.weights_scaling_factor"),
        ({"l.input_scale": ("f4", 1)}, "l.input_scale"),
    ],
)
def test_what_is_not_certain_is_skipped_with_the_reason(beside, reason):
    checkpoint = shaped({"l.weight": (F8, 256, 200), "m.weight": ("f4", 2, 2), **beside})
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert [pair.name for pair in pairs] == ["m.weight"]
    reasons = dict(skipped)
    assert reasons.pop("l.weight") == f"quantised: float8_e4m3fn with the scale {reason}"
    assert reasons.keys() == beside.keys()
    assert all(found == "quantised: part of l.weight (one byte and a scale)" for found in reasons.values())


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (("u1", 8, 4), ("f4", 8, 1)),
        (("?", 8, 4), ("f4", 1)),
        (("i1", 64, 256), ("f4", 64, 2)),  # as four-bit numbers are packed, in groups of 256
        (("i1", 256, 256), ("f4", 2, 2)),
        (("i1", 3, 8, 4), ("f4", 3, 8, 4)),
        ((F8, 5), ("f4", 1)),
        ((F8, 0, 4), ("f4", 1)),
        ((F8, 3, 8, 4), ("f4", 3, 2)),
        ((F8, 3, 8, 8), ("f4", 3, 8, 1)),  # fbgemm's experts have theirs for the other axis
        ((F8, 3, 256, 256), ("f4", 2, 2, 2)),
    ],
)
def test_weights_that_only_look_like_it(weight, scale):
    checkpoint = shaped({"mlp.up_proj": weight, "mlp.up_proj_scale": scale})
    assert set(quantised(checkpoint)) == {"mlp.up_proj", "mlp.up_proj_scale"}
    assert checkpoint.dtype("mlp.up_proj") == np.dtype(weight[0])


@pytest.mark.parametrize("size", [[128], [128, 64], [0, 128], ["128", 128], [128, 1.0], "128x128", 128, None])
def test_a_block_size_that_cannot_be_or_does_not_fit(save, tmp_path, size):
    save(
        tmp_path / "m.safetensors", {"l.weight": np.zeros((256, 256), F8), "l.weight_scale_inv": np.ones((2, 2), "f4")}
    )
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": size}}))
    reason = quantised(open_checkpoint(str(tmp_path))).get("l.weight")
    if size == [128, 64]:
        expected = "l.weight_scale_inv, whose shape (2, 2) does not fit (256, 256) in blocks of (128, 64)"
        assert reason == f"float8_e4m3fn with the scale {expected}"
    else:
        assert reason is None  # as without a configuration


def test_input_scales_do_not_matter():
    names = ("l.input_scale", "l.activation_scale", "l.weight.input_scale", "k_scale")
    checkpoint = shaped({"l.weight": (F8, 4, 2), "l.weight_scale": ("f4",), **{name: ("f4",) for name in names}})
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert [pair.name for pair in pairs] == ["l.weight"]
    assert sorted(skipped) == [(name, "0-D: not a matrix") for name in sorted(names)]


def test_a_layer_of_deepseek_v3_as_published():
    """FP8 with a scale for each 128 x 128 block, but the router: README_WEIGHTS.md in its repository."""
    layer = "model.layers.3."
    linear = {"self_attn.q_a_proj": (1536, 7168), "mlp.experts.255.down_proj": (7168, 2048)}
    linear["self_attn.kv_a_proj_with_mqa"] = (576, 7168)  # 4.5 blocks of rows
    tensors = {f"{layer}mlp.gate.weight": (ml_dtypes.bfloat16, 256, 7168)}
    for name, (rows, columns) in linear.items():
        tensors[f"{layer}{name}.weight"] = (F8, rows, columns)
        tensors[f"{layer}{name}.weight_scale_inv"] = ("f4", -(-rows // 128), -(-columns // 128))
    checkpoint = shaped(tensors)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert skipped == []
    found = {pair.name: (pair.role, pair.expert, pair.shape, pair.stored_base, pair.dtype_base) for pair in pairs}
    scaled = ("float8_e4m3fn, scaled", np.float32)
    assert found == {
        f"{layer}mlp.gate.weight": ("router", None, (256, 7168), "bfloat16", ml_dtypes.bfloat16),
        f"{layer}self_attn.q_a_proj.weight": ("q_a", None, (1536, 7168), *scaled),
        f"{layer}self_attn.kv_a_proj_with_mqa.weight": ("kv_a", None, (576, 7168), *scaled),
        f"{layer}mlp.experts.255.down_proj.weight": ("down", 255, (7168, 2048), *scaled),
    }
    down = next(pair for pair in pairs if pair.role == "down")
    assert down.bytes_base == 7168 * 2048 + 4 * 56 * 16


@pytest.mark.parametrize(
    "dtypes",
    [
        {"l.weight": F8},
        {"l.weight": ml_dtypes.float8_e5m2, "m.weight_scale": "f4"},
        {"l.weight": "f4", "l.scale": "f4"},
        {"l.up": F8, "m.up_scale": "f4"},
        {"l.weight": ml_dtypes.bfloat16, "l.weight_scale": "f4"},
        {"l.kernel": "f4", "l.scale": "f4"},
        {"l.scales": "f4", "m.qweight": "f4"},
    ],
)
def test_other_tensors_are_not(dtypes):
    assert not quantised(tree(dtypes))
