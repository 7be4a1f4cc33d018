"""Layers that are not counted from 0 where they stand: after other layers, or as places in a block that repeats.

MaxText keeps the layers of one kind together. Of DeepSeek those without experts come first, then those with, both
counted from 0. Of a model whose layers alternate, each place in the block of layers that repeats has its own tensors,
over all blocks, and the layers left over at the end are by themselves.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from polarax.loaders.architectures import Recognised

_Place: TypeAlias = tuple[str, str]  # a prefix, and one of the table's `layers`


def number_layers(
    recognised: Mapping[str, Recognised], shape: Callable[[str], tuple[int, ...]]
) -> Mapping[str, Recognised]:
    """What the tables say of each tensor by itself, with the layers' numbers as the model counts them.

    Args:
        recognised: By name.
        shape: Of a tensor, by its name.
    """
    blocks: dict[_Place, int] = {}  # how many layers there are, or blocks of layers
    turns: dict[_Place, int] = {}  # how many layers are in a block
    for name, found in recognised.items():
        architecture = found.architecture
        if architecture is None or found.rule is None or not (architecture.follows or architecture.blocks):
            continue
        place, axis = (found.prefix, found.layers), architecture.layer_axis
        if not found.stacked:
            count = (found.identity.layer or 0) + 1
        elif len(shape(name)) > axis:
            count = shape(name)[axis]
        else:
            continue
        blocks[place] = max(blocks.get(place, 0), count)
        turns[place] = max(turns.get(place, 1), found.first + 1 if found.layers in architecture.blocks else 1)
    if not blocks:
        return recognised

    def numbered(found: Recognised) -> Recognised:
        if found.architecture is None or (found.prefix, found.layers) not in blocks:
            return found
        before = found.prefix, found.architecture.follows.get(found.layers, "")
        start = blocks[before] * turns[before] if before in blocks and before[1] else 0
        if not found.stacked:
            layer = found.identity.layer
            return found._replace(identity=found.identity._replace(layer=None if layer is None else layer + start))
        step = turns[found.prefix, found.layers] if found.layers in found.architecture.blocks else found.step
        return found._replace(first=found.first + start, step=step)

    return {name: numbered(found) for name, found in recognised.items()}
