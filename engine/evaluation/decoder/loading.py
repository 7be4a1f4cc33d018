"""A decoder with the weights of any checkpoint."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polarax.errors import UsageError
from polarax.evaluation.decoder.config import DecoderConfig
from polarax.evaluation.decoder.families import decoder_config
from polarax.evaluation.decoder.modules import Decoder
from polarax.evaluation.decoder.rotary import divided
from polarax.evaluation.decoder.sharding import sharding_of
from polarax.evaluation.decoder.stored import EMBEDDING, HEAD, Filler, Stored, list_stored
from polarax.loaders import Checkpoint, open_checkpoint
from polarax.planning.devices import cores

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_DIVISORS = "rope_freqs.weight"  # llama.cpp keeps the scaling of Llama 3 so
_LAYERS = "layers"


def load_decoder(
    source: Any,
    dtype: str = "float32",
    *,
    mesh: jax.sharding.Mesh | None = None,
    config: Mapping[str, Any] | None = None,
) -> Decoder:
    """A decoder with the weights of a checkpoint, ready to compute.

    >>> model = load_decoder("path/to/model")  # doctest: +SKIP
    >>> scores = model(tokens)  # (batch, length) to (batch, length, vocabulary)  # doctest: +SKIP

    Args:
        source: Whatever `polarax.open_checkpoint` takes: safetensors, GGUF, Orbax, a parameter tree.
        dtype: "float32" or "bfloat16", of weights and computing.
        mesh: Devices to divide it over: the axis "model" takes heads and hidden units, the axis "data" the batch.
        config: config.json, where the checkpoint has none of its own.

    Raises:
        UsageError: The architecture is not known, or a tensor is missing, left over or of another shape.
        CheckpointError: The checkpoint cannot be read.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}. Expected one of {', '.join(_DTYPES)}.")
    checkpoint = open_checkpoint(source)
    stored = list_stored(checkpoint, config)
    built = _config_of(checkpoint, stored)
    # Abstract: random weights would take longer to make than the real ones to read.
    abstract = nnx.eval_shape(lambda: Decoder(built, _DTYPES[dtype], rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract, nnx.Param)
    wanted = dict(_leaves(nnx.to_pure_dict(state)))
    _check(built, stored, wanted, checkpoint)
    with concurrent.futures.ThreadPoolExecutor(cores()) as threads:
        read = {
            path: jax.device_put(
                _read(path, shape, stored, checkpoint, threads), sharding_of(path, shape.shape, built, mesh)
            )
            for path, shape in wanted.items()
        }
    nnx.replace_by_pure_dict(state, _nested(read))
    return nnx.merge(graph, state)


def _config_of(checkpoint: Checkpoint, stored: Stored) -> DecoderConfig:
    """What the configuration says, and what only the stored tensors tell."""
    settings = stored.settings
    if not settings:
        raise UsageError(f"{checkpoint.location}: has no config.json, which says how its weights are put together.")
    embedding = stored.outside.get(EMBEDDING)
    if embedding is None or embedding.view is None:
        raise UsageError(f"{checkpoint.location}: has no embedding of tokens.")
    config = decoder_config(settings, embedding.view.shape[0], checkpoint.location)
    changes: dict[str, Any] = {
        "query_bias": config.query_bias or "self_attn.q_proj.bias" in stored.in_layer,
        "output_bias": "self_attn.o_proj.bias" in stored.in_layer,
        "unit_bias": "mlp.up_proj.bias" in stored.in_layer,
    }
    if "tie_word_embeddings" not in settings:
        changes["tied"] = HEAD not in stored.outside
    if checkpoint.format == "GGUF":
        changes["norm_offset"] = 0.0  # its converter has added it
        if _DIVISORS in checkpoint:
            divisors = checkpoint.read(_DIVISORS).result()
            changes["rotaries"] = (divided(config.rotaries[0], divisors), *config.rotaries[1:])
    return dataclasses.replace(config, **changes)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    for name, leaf in tree.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, inner)
        else:
            yield inner, leaf


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return tree


def _fillers(path: str, stored: Stored) -> tuple[Mapping[int, Filler], bool]:
    """What fills a parameter, by layer, and whether it has layers."""
    if path.startswith(f"{_LAYERS}."):
        return stored.in_layer.get(path.removeprefix(f"{_LAYERS}."), {}), True
    return ({0: stored.outside[path]} if path in stored.outside else {}), False


def _check(
    config: DecoderConfig, stored: Stored, wanted: Mapping[str, jax.ShapeDtypeStruct], checkpoint: Checkpoint
) -> None:
    """Refuses a checkpoint with more or less in it than the decoder takes."""
    where = checkpoint.location
    for path, shape in wanted.items():
        fillers, layered = _fillers(path, stored)
        for layer in range(config.layers if layered else 1):
            if layer not in fillers:
                place = f" in layer {layer}" if layered else ""
                raise UsageError(
                    f"{where}: a {config.family} model has {path.removeprefix('layers.')}{place}; not this."
                )
        for filler in fillers.values():
            expected = shape.shape[1:] if layered else shape.shape
            given = checkpoint.shape(filler.tensor)[-1:]
            if filler.view is not None:  # (out, in), which a kernel has the other way round
                given, expected = filler.view.shape, expected if filler.view.role == "embed" else expected[::-1]
            if given != expected:
                raise UsageError(
                    f"{where}: tensor {filler.tensor!r}: {_words(given)} does not fit the configuration, which asks "
                    f"for {_words(expected)}."
                )
    more = [
        filler.tensor
        for path, fillers in stored.in_layer.items()
        if f"{_LAYERS}.{path}" not in wanted
        for filler in fillers.values()
    ]
    beyond = [
        filler.tensor
        for fillers in stored.in_layer.values()
        for layer, filler in fillers.items()
        if layer >= config.layers
    ]
    left_over = [*stored.left_over, *more, *beyond]
    if left_over:
        raise UsageError(
            f"{where}: a {config.family} model has no {left_over[0]!r}: the decoder would leave {len(left_over)} "
            f"tensor{'' if len(left_over) == 1 else 's'} of the layers out."
        )


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _read(
    path: str,
    shape: jax.ShapeDtypeStruct,
    stored: Stored,
    checkpoint: Checkpoint,
    threads: concurrent.futures.Executor,
) -> np.ndarray:
    """A parameter, its layers read side by side."""
    fillers, layered = _fillers(path, stored)
    out = np.empty(shape.shape, shape.dtype)

    def fill(layer: int) -> None:
        out[layer if layered else ...] = fillers[layer].read(checkpoint).result()

    list(threads.map(fill, range(shape.shape[0] if layered else 1)))
    return out
