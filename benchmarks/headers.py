"""Checkpoints of published sizes of which only the headers are there: their tensors are holes in the files.

python -m benchmarks.headers MODEL FOLDER

They take no room on the disk, and are for `polarax plan`, which reads headers alone.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

from benchmarks.checkpoints import model_tensors
from benchmarks.shapes import CONFIGS

_SHARDS = 163


def all_tensors(model: str) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix of a model, its embedding and head included."""
    config = CONFIGS[model]
    yield "model.embed_tokens.weight", config.vocab_size, config.hidden_size
    yield from model_tensors(model, None, max(1, config.num_experts))
    if not config.tie_word_embeddings:
        yield "lm_head.weight", config.vocab_size, config.hidden_size


def write_headers(folder: pathlib.Path, tensors: Sequence[tuple[str, int, int]], shards: int = _SHARDS) -> None:
    """Writes a sharded bfloat16 checkpoint whose tensors are holes.

    Args:
        folder: Where to; it is made.
        tensors: Name, rows and columns of each.
        shards: Files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
        header, offset = {}, 0
        for name, rows, cols in tensors[shard::shards]:
            header[name] = {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [offset, offset + 2 * rows * cols]}
            offset += 2 * rows * cols
            weight_map[name] = file
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + offset)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Writes the headers of a model; returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in CONFIGS:
        print(f"Usage: python -m benchmarks.headers MODEL FOLDER, with one of {', '.join(CONFIGS)}.", file=sys.stderr)
        return 2
    model, folder = arguments
    write_headers(pathlib.Path(folder), list(all_tensors(model)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
