"""`monitor`: the tracker as an optax gradient transformation, which leaves the updates as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polarax.errors import UsageError
from polarax.tracking.tracker import Tracker, TrackerState

# Of the last state that was made with each set of arguments: see `_outline`.
_structures: dict[Any, Any] = {}


class MonitorState(NamedTuple):
    """State of `monitor`; `optax.tree.get(state, "metrics")` finds the numbers in that of a whole chain."""

    count: jax.Array  # type: ignore[assignment]  # (), int32: updates so far
    tracker: TrackerState


def monitor(tracker: Tracker | None = None, /, **arguments: Any) -> Any:
    """An optax gradient transformation that follows the parameters and passes the updates on untouched.

    Not `optax.monitor` (optax 0.2.7 and later), which keeps a scalar of the updates, such as their norm, that you give
    it as a function. This one follows the parameters: it keeps a copy of them as they were at init, measures each
    matrix against it now and then, and needs `params` at every update.

    The parameters of an update are those before it, so that step 0 is the model as it was at init. Where they are
    divided over processes, these initialise and update together, as any optimizer. Needs optax
    (`pip install 'polarax[train]'`).

    Args:
        tracker: What to follow; or instead
        **arguments: those of `polarax.Tracker`.

    Raises:
        UsageError: Both are given, an argument cannot be used, or, at an update, there are no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import polarax
        >>> optimizer = optax.chain(polarax.monitor(every=10), optax.sgd(0.1))
        >>> params = {"dense": {"kernel": jnp.eye(32)}}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> metrics = optax.tree.get(state, "metrics")
        >>> metrics.scalars()["spectra/other/dense.kernel/drift"]
        0.0
    """
    try:
        import optax
    except ImportError as error:
        raise UsageError("polarax.monitor needs optax: pip install 'polarax[train]'.") from error
    if tracker is not None and arguments:
        raise UsageError(f"Give a tracker or its arguments, not both. Got {', '.join(arguments)} beside a tracker.")
    followed = Tracker(**arguments) if tracker is None else tracker
    placeholder = _placeholder_type()
    key = repr(sorted(arguments.items())) if tracker is None else tracker
    seen: set[Any] = set()

    def init(params: Any) -> MonitorState:
        if isinstance(params, placeholder):
            return MonitorState(jnp.zeros((), jnp.int32), _outline(seen, key))
        tracked = followed.init(params)
        state = MonitorState(jnp.zeros_like(tracked.metrics.step), tracked)  # on the devices of the parameters
        _structures[key] = jax.tree.structure(state.tracker)
        seen.add(_structures[key])
        return state

    def update(updates: Any, state: MonitorState, params: Any = None, **_: Any) -> tuple[Any, MonitorState]:
        if params is None:
            raise UsageError("polarax.monitor needs the parameters: optimizer.update(grads, state, params).")
        tracked, _metrics = followed.update(state.tracker, params, state.count)
        return updates, MonitorState(optax.safe_increment(state.count), tracked)

    return optax.GradientTransformationExtraArgs(init, update)


def _placeholder_type() -> type:
    """What `optax.tree.map_params` gives to `init` in place of parameters, to see where in a state they are."""
    import optax

    given: list[type] = []

    def init(params: Any) -> tuple[()]:
        given.append(type(params))
        return ()

    optax.tree_utils.tree_map_params(init, lambda x: x, ())
    return given[0]


def _outline(seen: set[Any], key: Any) -> Any:
    """A tracker's state for `optax.tree.map_params`, in which nothing has the structure of the parameters.

    What is in it depends on the parameters, which a placeholder does not tell. So it is that of the state which this
    transformation made before; or, where it made none, as the inner one of `optax.inject_hyperparams`, which is made
    anew each time, that of the last one with the same arguments. Where there is none either, or several, the state
    counts as one leaf.
    """
    structure = next(iter(seen)) if len(seen) == 1 else None if seen else _structures.get(key)
    return 0 if structure is None else jax.tree.unflatten(structure, [0] * structure.num_leaves)
