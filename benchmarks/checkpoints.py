"""Checkpoints to time whole commands on: bfloat16 safetensors with the tensor names of the models.

python -m benchmarks.checkpoints --folder=DIR --model=qwen2.5-1.5b --layers=2
python -m benchmarks.checkpoints --folder=DIR --stack=32x192x576,2x4096x1024 [--same]
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
from absl import flags
from safetensors.numpy import save_file

from benchmarks.matrices import weight_pairs
from benchmarks.shapes import CONFIGS, linear_layers, shrunk

# Routed experts written for each layer; a mixture's other experts have the same shapes.
_MOST_EXPERTS = 8

_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_a": "self_attn.q_a_proj",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_b": "self_attn.kv_b_proj",
    "router": "mlp.gate",
    **{role: f"mlp.{role}_proj" for role in ("gate", "up", "down")},
    **{f"shared_{role}": f"mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")},
    **{f"expert_{role}": f"mlp.experts.#.{role}_proj" for role in ("gate", "up", "down")},
}


def model_tensors(model: str, layers: int | None, most_experts: int = _MOST_EXPERTS) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every linear layer of the last `layers` layers (all for None).

    The last ones, so that a mixture whose leading layers are dense shows its experts; numbered from 0.
    """
    config = CONFIGS[model]
    wanted = min(layers or config.num_hidden_layers, config.num_hidden_layers)
    for layer in range(wanted):
        for linear in linear_layers(config):
            if linear.layers < config.num_hidden_layers:
                # In a mixture either the first layers have this role or the last ones have it.
                dense = linear.role in ("gate", "up", "down")
                position = config.num_hidden_layers - wanted + layer
                if dense != (position < config.first_k_dense_replace):
                    continue
            for expert in range(min(linear.per_layer, most_experts)):
                name = _NAMES[linear.role].replace("#", str(expert))
                yield f"model.layers.{layer}.{name}.weight", linear.rows, linear.cols


def write(
    folder: pathlib.Path, tensors: Sequence[tuple[str, int, int]], *, seed: int, most_bytes: int, same: bool = False
) -> None:
    """Writes base.safetensors and post.safetensors.

    Args:
        folder: Where to.
        tensors: Name, rows and columns of each.
        seed: Of the weights.
        most_bytes: Room on the disk.
        same: All matrices of one shape are the same, for large files soon.

    Raises:
        ValueError: The files would take more than `most_bytes`.
    """
    size = sum(2 * 2 * rows * cols for _, rows, cols in tensors)
    if size > most_bytes:
        raise ValueError(f"The files would take {size / 2**30:.1f} GiB; there is room for less.")
    sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    made: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for index, (name, rows, cols) in enumerate(tensors):
        pair = made.get((rows, cols))
        if pair is None:
            pair = weight_pairs(rows, cols, 1, dtype=np.dtype(ml_dtypes.bfloat16), seed=seed + index)
        if same:
            made[rows, cols] = pair
        for side, stack in zip(sides, pair, strict=True):
            side[name] = stack[0]
    for which, side in zip(("base", "post"), sides, strict=True):
        save_file(side, folder / f"{which}.safetensors")


def main(arguments: Sequence[str]) -> int:
    """Writes what the flags say; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("folder", None, "Where to write.", flag_values=values)
    flags.DEFINE_string("model", None, "Whose shapes.", flag_values=values)
    flags.DEFINE_integer("layers", None, "How many layers; all by default.", flag_values=values)
    flags.DEFINE_string("stack", None, "COUNTxROWSxCOLS, or several, instead.", flag_values=values)
    flags.DEFINE_integer("shrink", 1, "Divides every dimension.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the weights.", flag_values=values)
    flags.DEFINE_integer("most_bytes", 2**40, "Room on the disk.", flag_values=values)
    flags.DEFINE_boolean("same", False, "All matrices of one shape are the same.", flag_values=values)
    values(["checkpoints", *arguments])
    if values.stack:
        shapes = [tuple(map(int, stack.split("x"))) for stack in values.stack.split(",")]
        sizes = [(rows, cols) for count, rows, cols in shapes for _ in range(count)]
        tensors = [(f"model.layers.{i}.self_attn.k_proj.weight", *size) for i, size in enumerate(sizes)]
    else:
        tensors = list(model_tensors(values.model, values.layers))
    shapes = [(name, shrunk(rows, values.shrink), shrunk(cols, values.shrink)) for name, rows, cols in tensors]
    write(pathlib.Path(values.folder), shapes, seed=values.seed, most_bytes=values.most_bytes, same=values.same)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
