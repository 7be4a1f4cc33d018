"""Which tensors of a saved training state are its optimiser's, or our tracker's, and not the model's.

Some modules are called `optim` or `tracker`, so a name decides nothing by itself. What is beneath it does: an optimiser
keeps moments under names of its own, or one tensor for each parameter beside it; a tracker keeps the fields of its
state.
"""

import math
import re
from collections.abc import Iterable, Sequence

from polarax.loaders.checkpoint import Checkpoint

OPTIMIZER = "optimizer state: not a parameter"

# What training code calls its optimiser's state, and nobody a module.
_STATES = tuple(
    "opt_state opt_states optim_state optim_states optimizer_state optimizer_states optimiser_state "
    "optimizer_state_dict optim_state_dict".split()
)
# What it may call either.
_OPTIMIZERS = ("optimizer", "optimizers", "optim", "optimiser")
_PARAM_STATES = "param_states"  # flax.optim and T5X: state.param_states.NAME.v_row
_ROOT = re.compile(rf"(?:^|(?<=[./]))(?:{'|'.join((*_STATES, *_OPTIMIZERS, _PARAM_STATES))})(?=[./])")

# One of these is enough. Of torch.optim and of bitsandbytes, Megatron, transformers' Adafactor; flax.optim; optax.
_FIELDS = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq exp_inf square_avg acc_delta grad_avg momentum_buffer param_groups param_state "
    "exp_avg_sq_row exp_avg_sq_col fp32_param state1 state2 absmax1 qmap1 "
    "param_states grad_ema grad_sq_ema "
    "opt_state inner_state inner_states inner_opt_state base_optimizer_state hyperparams hyperparams_states acc_grads "
    "v_row v_col sum_of_squares nu_max grad_sum grad_sum_sq numerator_weighted init_params fast_state ns_coeffs "
    "prev_updates previous_gradient cumulative_gradients diff_params_memory diff_updates_memory notfinite_count".split()
)
# And these where they stand beside each other, or hold one tensor for each parameter: modules have such names too.
_MOMENTS = frozenset("mu nu m v m1 m2 trace ema momentum velocity e_g e_x z x0 params0 g n step_sizes sum".split())
_PAIRS = (("mu", "nu"), ("m", "v"), ("e_g", "e_x"))
_COUNTS = ("count", "step")

_DEEPEST = 3  # words to a state from the top; a module in every layer is none, and need not be matched with others

# Keys that parameters have in a training state beside its optimiser.
_PARAMETERS = ("params", "model", "target", "module", "model_state_dict", "state_dict", "model_state")

# A tracker's state (polarax.tracking): its fields, below whatever it was saved as.
_METRICS_STEP = "metrics.full_step"
_METRICS_FINITE = "metrics.finite"
_TRACKED = re.compile(
    r"base\.\d+(?:\.value)?|(?:reference|last)\.\d+x\d+[^.]*\.[a-z_]+"
    r"|metrics\.(?:step|full_step|finite|leading|readings\..+|spectra\..+)"
)


def optimizer_names(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors that are an optimiser's or a tracker's, by names and shapes; reads none.

    Args:
        checkpoint: Of a model, or of a whole training state.
    """
    beneath: dict[str, list[str]] = {}  # by what an optimiser's state may be called, what is in it
    found: set[str] = set()
    for name in checkpoint.names():
        # To look for these is quick, and a large model has some 90,000 names.
        if "opt" in name or _PARAM_STATES in name:
            for match in _ROOT.finditer(name):
                beneath.setdefault(name[: match.end()], []).append(name)
        if name.endswith("full_step"):
            found |= _tracked(checkpoint, name)
    for root, names in beneath.items():
        if not found.issuperset(names) and _is_optimizer(checkpoint, root, names, found):
            found |= _without_target(root, names)
    return frozenset(found)


def _tracked(checkpoint: Checkpoint, step: str) -> set[str]:
    """What a tracker stored beside one of its fields; nothing if that is none of its."""
    root = step[: -len(_METRICS_STEP)]
    if not _dotted(step).endswith(_METRICS_STEP) or (root and root[-1] not in "./"):
        return set()
    names = {name for name in checkpoint.names() if name.startswith(root)}
    fields = {name: _dotted(name[len(root) :]) for name in names}
    if _METRICS_FINITE not in fields.values():
        return set()
    return {name for name, field in fields.items() if _TRACKED.fullmatch(field)}


def _is_optimizer(checkpoint: Checkpoint, root: str, names: Sequence[str], tracked: set[str]) -> bool:
    """Whether what is beneath a name is what optimisers keep."""
    word = re.split("[./]", root)[-1]
    if word == _PARAM_STATES:
        return True
    paths = {name: tuple(_dotted(name[len(root) + 1 :]).split(".")) for name in names}
    words = {word for path in paths.values() for word in path}
    if words & _FIELDS or any(name in tracked for name in names):
        return True
    if any(_is_count(path) and math.prod(checkpoint.shape(name)) == 1 for name, path in paths.items()):
        return True
    if word in _STATES and words & _MOMENTS:
        return True
    return _stand_in_pairs(paths.values(), words) or _repeat_parameters(checkpoint, root, paths)


def _is_count(path: Sequence[str]) -> bool:
    """Whether it is a number that optax keeps: 0.count, in a chain."""
    return path[-1] in _COUNTS and len(path) > 1 and all(word.isdecimal() for word in path[:-1])


def _stand_in_pairs(paths: Iterable[tuple[str, ...]], words: set[str]) -> bool:
    """Whether all that is kept as a first moment is kept as a second one too."""
    paths = set(paths)
    for first, second in _PAIRS:
        if not {first, second} <= words:
            continue
        firsts = [path for path in paths if first in path]
        if all(_replaced(path, first, second) in paths for path in firsts):
            return True
    return False


def _replaced(path: tuple[str, ...], word: str, other: str) -> tuple[str, ...]:
    place = path.index(word)
    return (*path[:place], other, *path[place + 1 :])


def _repeat_parameters(checkpoint: Checkpoint, root: str, paths: dict[str, tuple[str, ...]]) -> bool:
    """Whether most tensors beneath a name have the names and shapes of parameters beside it, below or above a moment's.

    A module that resembles the one beside it has no moments. A chain's numbers and `state` stand for one, too.
    """
    if _dotted(root).count(".") >= _DEEPEST:
        return False
    parent = root[: max(root.rfind("."), root.rfind("/")) + 1]
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for name in checkpoint.names():
        if name.startswith(parent) and name not in paths:
            path = tuple(_dotted(name[len(parent) :]).split("."))
            shapes[path] = checkpoint.shape(name)
            if path[0] in _PARAMETERS and len(path) > 1:
                shapes.setdefault(path[1:], checkpoint.shape(name))
    lengths = sorted({len(path) for path in shapes})
    certain = re.split("[./]", root)[-1] in _STATES
    arrays = repeated = 0
    for name, path in paths.items():
        shape = checkpoint.shape(name)
        if not shape:
            continue
        arrays += 1
        for length in lengths:
            above, below = path[:-length], path[:-1][-length:]
            moment = certain or any(word in _MOMENTS or word.isdecimal() or word == "state" for word in above)
            if (moment and shapes.get(path[-length:]) == shape) or (
                path[-1] in _MOMENTS and len(below) == length and shapes.get(below) == shape
            ):
                repeated += 1
                break
    return 2 * repeated > arrays


def _without_target(root: str, names: Sequence[str]) -> set[str]:
    """All names but those of the parameters themselves, which flax.optim kept in its optimiser: target beside state."""
    first = {name: _dotted(name[len(root) + 1 :]).partition(".")[0] for name in names}
    if "state" not in first.values():
        return set(names)
    return {name for name in names if first[name] != "target"}


def _dotted(name: str) -> str:
    return name.replace("/", ".")
