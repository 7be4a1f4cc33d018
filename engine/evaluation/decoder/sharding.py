"""How a decoder is divided over devices: heads and hidden units over one axis, the batch over another.

As in Megatron-LM (arXiv:1909.08053): the matrices into heads and units are divided by their outputs, those back to the
residual stream by their inputs, so that a layer needs two sums over the devices.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polarax.evaluation.decoder.config import DecoderConfig

MODEL_AXIS, DATA_AXIS = "model", "data"
_BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_BY_INPUTS = ("o_proj", "down_proj")


def compiler_mesh(mesh: Mesh) -> Mesh:
    """The same devices, with the compiler to say how what is between inputs and outputs is divided."""
    return Mesh(mesh.devices, mesh.axis_names)


def sharding_of(path: str, shape: tuple[int, ...], config: DecoderConfig, mesh: Mesh | None) -> NamedSharding | None:
    """How a parameter is divided; None without a mesh.

    Args:
        path: Dotted: "layers.self_attn.q_proj.kernel".
        shape: Its own; those of layers have the layers first.
        config: Of the decoder.
        mesh: With an axis "model"; without it every device has all.
    """
    if mesh is None:
        return None
    *_, module, leaf = path.split(".")
    spec: list[str | None] = [None] * len(shape)
    ways = mesh.shape.get(MODEL_AXIS, 1)
    axis = None
    if module in _BY_OUTPUTS:
        axis = len(shape) - 1
    elif module in _BY_INPUTS and leaf == "kernel":
        axis = len(shape) - 2
    elif module == "embed_tokens":
        axis = 0
    elif module == "lm_head":
        axis = 1
    heads = {"q_proj": config.heads, "o_proj": config.heads, "k_proj": config.key_heads, "v_proj": config.key_heads}
    if axis is not None and heads.get(module, shape[axis]) % ways == 0 and MODEL_AXIS in mesh.axis_names:
        spec[axis] = MODEL_AXIS
    return NamedSharding(compiler_mesh(mesh), PartitionSpec(*spec))


def tokens_sharding(mesh: Mesh | None, batch: int) -> jax.sharding.Sharding | None:
    """How tokens (batch, length) are divided: by rows where their number allows; None without a mesh."""
    if mesh is None:
        return None
    over = DATA_AXIS if DATA_AXIS in mesh.axis_names and batch % mesh.shape[DATA_AXIS] == 0 else None
    return NamedSharding(compiler_mesh(mesh), PartitionSpec(over))
