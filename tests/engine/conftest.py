"""Tiny checkpoints to compare, written by the reference library, and one finished run of a pair."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg

import polarax
from polarax.cli import main
from tests.engine.command import Done
from tests.engine.crashes import crashes  # noqa: F401  a fixture

LAYERS = 3
HIDDEN = 48
# Inside a layer: name, (out, in). One key-value head for two query heads, so that k and v are narrower.
LAYER_SHAPES = {
    "self_attn.q_proj": (48, 48),
    "self_attn.k_proj": (24, 48),
    "self_attn.v_proj": (24, 48),
    "self_attn.o_proj": (48, 48),
    "mlp.gate_proj": (96, 48),
    "mlp.up_proj": (96, 48),
    "mlp.down_proj": (48, 96),
}


class LlamaPair(NamedTuple):
    """Two checkpoints of a Llama model in bfloat16; the post is sharded."""

    base: str
    post: str
    matrices: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> base, post in bfloat16
    vectors: tuple[str, ...]  # the 1-D tensors


def write_checkpoint(path: pathlib.Path, arrays: Mapping[str, np.ndarray], shards: int = 0) -> str:
    """Writes one file, or a folder of shards with an index; returns the path as a string."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if not shards:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(arrays, path)
        return str(path)
    path.mkdir(parents=True)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = list(arrays)[shard::shards]
        safetensors.numpy.save_file({name: arrays[name] for name in names}, path / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(path)


@pytest.fixture(scope="session")
def write() -> Callable[..., str]:
    return write_checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> LlamaPair:
    """Every kind of change somewhere: noise, scaling, both rotations, low rank, next to nothing."""
    rng = np.random.default_rng(20250917)
    folder = tmp_path_factory.mktemp("llama")
    shapes = {
        "model.embed_tokens.weight": (96, HIDDEN),
        "lm_head.weight": (96, HIDDEN),
        **{
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(LAYERS)
            for name, shape in LAYER_SHAPES.items()
        },
    }
    matrices = {}
    for name, shape in shapes.items():
        base = _with_decaying_spectrum(rng, shape).astype(ml_dtypes.bfloat16)
        matrices[name] = base, _changed(rng, name, base.astype(np.float64)).astype(base.dtype)
    norms = {
        f"model.layers.{layer}.{norm}.weight": np.ones(HIDDEN, ml_dtypes.bfloat16)
        for layer in range(LAYERS)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    norms["model.norm.weight"] = np.ones(HIDDEN, ml_dtypes.bfloat16)
    base = {name: pair[0] for name, pair in matrices.items()} | norms
    post = {name: pair[1] for name, pair in matrices.items()} | norms
    return LlamaPair(
        write_checkpoint(folder / "base" / "model.safetensors", base),
        write_checkpoint(folder / "post", post, shards=3),
        matrices,
        tuple(norms),
    )


@pytest.fixture(scope="session")
def llama_run(llama, tmp_path_factory) -> polarax.Run:
    """The pair compared as a user would, with every option at its default."""
    out = tmp_path_factory.mktemp("runs") / "llama"
    return polarax.compare(llama.base, llama.post, out, progress=False)


class SmallPair(NamedTuple):
    """Two layers of one 12 x 8 matrix each, and a vector: the cheapest pair that is one."""

    base: str
    post: str
    base_arrays: dict[str, np.ndarray]
    post_arrays: dict[str, np.ndarray]


@pytest.fixture
def small(tmp_path) -> SmallPair:
    rng = np.random.default_rng(5)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]
    base = {name: rng.normal(size=(12, 8)).astype(np.float32) for name in names}
    post = {name: (w + 0.01 * rng.normal(size=w.shape)).astype(np.float32) for name, w in base.items()}
    vector = {"model.norm.weight": np.ones(8, np.float32)}
    return SmallPair(
        write_checkpoint(tmp_path / "base.safetensors", base | vector),
        write_checkpoint(tmp_path / "post.safetensors", post | vector),
        base | vector,
        post | vector,
    )


@pytest.fixture
def cli(capsys) -> Callable[..., Done]:
    """Runs a command in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


def _with_decaying_spectrum(rng, shape):
    rank = min(shape)
    left, _ = np.linalg.qr(rng.normal(size=(shape[0], rank)))
    right, _ = np.linalg.qr(rng.normal(size=(shape[1], rank)))
    condition = 10 ** rng.uniform(1, 3)
    return (left * np.geomspace(2, 2 / condition, rank)) @ right.T


def _changed(rng, name, base):
    left, values, right_t = np.linalg.svd(base, full_matrices=False)
    noise = rng.normal(size=base.shape) * np.linalg.norm(base) / np.sqrt(base.size)
    skew = rng.normal(size=(len(values), len(values)))
    turn = scipy.linalg.expm(0.02 * (skew - skew.T))
    if "q_proj" in name:
        return base + 0.01 * noise
    if "k_proj" in name:
        return 1.02 * base
    if "v_proj" in name:  # left and right vectors turned together
        return (left @ turn * values) @ turn.T @ right_t
    if "o_proj" in name:  # and against each other
        return (left @ turn * values) @ turn @ right_t
    if "gate_proj" in name:
        return base + 0.1 * noise
    if "up_proj" in name:  # a strong new direction
        new = np.outer(rng.normal(size=base.shape[0]), rng.normal(size=base.shape[1]))
        return base + 3 * values[0] * new / np.linalg.norm(new)
    if "down_proj" in name:  # singular values alone, each by its own factor
        return (left * values * rng.uniform(0.9, 1.1, len(values))) @ right_t
    if "embed" in name:  # less than the rounding of most entries
        return base + 0.001 * noise
    return base + 0.03 * noise
