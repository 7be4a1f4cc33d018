"""The whole analysis of a pair, at the shapes of the models, beside the scripts a user would run.

All matrices of one shape in a layer are one stack for polarax and a loop for the scripts. Weights
are bfloat16 and on the device already; the scripts widen them to float32, polarax to its working
dtype. The scripts compute less: no controls, no spectrum of the change.
"""

import functools
import math

import ml_dtypes
import numpy as np

from benchmarks import device, peers
from benchmarks.cases import Case, Record, raced
from benchmarks.engine import SCRIPT_GROUPS, in_lanes, nominal_operations
from benchmarks.matrices import weight_pairs
from benchmarks.options import Options
from benchmarks.shapes import CONFIGS, distinct_shapes, shrunk
from benchmarks.timing import Contestant

# Matrices of one shape measured at most: a mixture has hundreds of experts in a layer. The figures
# of a layer are scaled up to all of them, and say so.
_MOST_OF_A_SHAPE = 8
# What one stack, base and post, may take in its stored dtype.
_MOST_BYTES = 2 * 2**30


def cases(options: Options) -> list[Case]:
    """Model by model, layer by layer, shape by shape, small shapes first."""
    found = []
    for model in options.models:
        config = CONFIGS[model]
        layers = min(options.layers or config.num_hidden_layers, config.num_hidden_layers)
        shapes = distinct_shapes(config)
        for layer in range(layers):
            for rows, cols in sorted(shapes, key=math.prod):
                small = shrunk(rows, options.shrink), shrunk(cols, options.shrink)
                found.append(
                    Case(
                        f"{model}, layer {layer}, {shapes[rows, cols]} of {small[0]} x {small[1]}",
                        functools.partial(_race, options, model, layer, *small, shapes[rows, cols]),
                    )
                )
    return found


def _race(options, model, layer, rows, cols, in_layer) -> list[Record]:
    fits = max(1, _MOST_BYTES // (2 * 2 * rows * cols))
    count = min(in_layer, _MOST_OF_A_SHAPE, fits)
    seed = options.seed + 1000 * layer
    base, post = weight_pairs(rows, cols, count, dtype=np.dtype(ml_dtypes.bfloat16), seed=seed)
    return raced(
        contestants(options, base, post),
        options,
        case=f"{model} layer {layer} {count}x{rows}x{cols}",
        model=model,
        layer=layer,
        rows=rows,
        cols=cols,
        count=count,
        in_layer=in_layer,
        operations=nominal_operations(rows, cols, count),
    )


def contestants(options: Options, base: np.ndarray, post: np.ndarray) -> list[Contestant]:
    """polarax with everything it measures, with what the scripts measure, in float32; the peers."""
    default, *others = device.dtypes()
    found = [in_lanes("polarax", base, post, dtype=default)]
    if not options.short:  # which has no time to compile them
        only = {"dtype": default, "groups": SCRIPT_GROUPS}
        found.append(in_lanes("polarax, script's metrics", base, post, **only))
        found += [in_lanes(f"polarax {dtype}", base, post, dtype=dtype) for dtype in others]
    found += script_contestants(options, base, post)
    if "weightwatcher" in options.peers:
        found.append(_weightwatcher(base, post))
    return found


def script_contestants(options: Options, base: np.ndarray, post: np.ndarray) -> list[Contestant]:
    """The peers' scripts, looping over a stack."""
    wide = base.shape[-2] < base.shape[-1]
    found = []
    for name, library, analyse in peers.scripts(options.peers, options.threads):
        if name.endswith("careful") and not wide:
            continue  # the same program as the plain one
        found.append(_scripted(name, library, analyse, base, post))
    return found


def _scripted(name, library, analyse, base, post):
    pairs = [(library.put(one), library.put(other)) for one, other in zip(base, post, strict=True)]

    def call():
        for one, other in pairs:
            analyse(one, other)

    return Contestant(name, call, about={"dtype": "float32"})


def _weightwatcher(base, post):
    analyses = [peers.weightwatcher_analysis(list(stack)) for stack in (base, post)]

    def call():
        for analyse in analyses:
            analyse()

    # It reads the spectra and power laws of each model, and nothing of the pair.
    return Contestant("weightwatcher (spectra)", call, about={"dtype": "float32"})
