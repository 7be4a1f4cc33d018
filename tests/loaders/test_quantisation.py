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
        ({"l.weight": F8, "l.weight_scale_inv": "f4"}, "float8_e4m3fn with the scale l.weight_s"),
        ({"l.weight": F8, "l.weight_scale": "f4"}, "float8_e4m3fn with the scale l.weight_scale"),
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


def test_a_layer_of_deepseek_v3_as_published():
    """FP8 with a scale for each 128 x 128 block, but the router: README_WEIGHTS.md in its repository."""
    layer = "model.layers.3."
    linear = {"self_attn.q_a_proj": (1536, 7168), "mlp.experts.255.down_proj": (7168, 2048)}
    linear["self_attn.kv_a_proj_with_mqa"] = (576, 7168)  # 4.5 blocks of rows
    tensors = {f"{layer}mlp.gate.weight": np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), (256, 7168))}
    for name, (rows, columns) in linear.items():
        tensors[f"{layer}{name}.weight"] = np.broadcast_to(np.zeros((), F8), (rows, columns))
        blocks = (-(-rows // 128), -(-columns // 128))
        tensors[f"{layer}{name}.weight_scale_inv"] = np.broadcast_to(np.float32(1), blocks)
    checkpoint = open_checkpoint(tensors)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert [(pair.name, pair.role) for pair in pairs] == [(f"{layer}mlp.gate.weight", "router")]
    reasons = dict(skipped)
    for name in linear:
        scale = f"{layer}{name}.weight_scale_inv"
        assert reasons[f"{layer}{name}.weight"] == f"quantised: float8_e4m3fn with the scale {scale}"
        assert reasons[scale] == f"quantised: part of {layer}{name}.weight (one byte and a scale)"


@pytest.mark.parametrize(
    "dtypes",
    [
        {"l.weight": F8},
        {"l.weight": ml_dtypes.float8_e5m2, "m.weight_scale": "f4"},
        {"l.weight": "f4", "l.scale": "f4"},
        {"l.weight": ml_dtypes.bfloat16, "l.weight_scale": "f4"},
        {"l.kernel": "f4", "l.scale": "f4"},
        {"l.scales": "f4", "m.qweight": "f4"},
    ],
)
def test_other_tensors_are_not(dtypes):
    assert not quantised(tree(dtypes))
