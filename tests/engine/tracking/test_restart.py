"""A run that is stopped, saved with Orbax and restored in another process' place gives the same curves."""

import functools

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import polarax
from polarax.loaders import open_checkpoint
from polarax.loaders.matrices import take_inventory
from tests.engine.tracking import trees


def _run(tracker, params, state, first, last):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, number):
        state, _ = tracker.update(state, params, number)
        grads = jax.tree.map(jnp.sin, params)
        return jax.tree.map(lambda x, g: x - 0.01 * g, params, grads), state

    curves = {}
    for number in range(first, last):
        params, state = step(params, state, number)
        if number % tracker.every == 0:
            curves[number] = state.metrics.scalars(leading=True)
    return params, state, curves


def test_a_restart_gives_the_same_curves(tmp_path):
    make = functools.partial(polarax.Tracker, every=2, k=4, include="mlp", layers="0")
    tracker = make()
    _, _, whole = _run(tracker, trees.decoder(), tracker.init(trees.decoder()), 0, 7)
    params, state, before = _run(tracker, trees.decoder(), tracker.init(trees.decoder()), 0, 3)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        saved = ocp.args.StandardSave({"params": params, "tracker": state})
        manager.save(3, args=saved)
    again = make()
    abstract = jax.eval_shape(again.init, trees.decoder())
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        target = {"params": jax.eval_shape(lambda: trees.decoder()), "tracker": abstract}
        restored = manager.restore(3, args=ocp.args.StandardRestore(target))
    assert restored["tracker"].metrics.labels == state.metrics.labels
    _, _, after = _run(again, restored["params"], restored["tracker"], 3, 7)
    assert sorted(before | after) == sorted(whole) == [0, 2, 4, 6]
    for number, scalars in (before | after).items():
        for name, value in scalars.items():
            assert value == pytest.approx(whole[number][name], rel=1e-5, abs=1e-7, nan_ok=True), name


def test_what_a_tracker_keeps_is_not_taken_for_weights(tmp_path):
    tracker = polarax.Tracker(every=2, metrics="change")
    state = {"params": trees.decoder(), "tracker": tracker.init(trees.decoder())}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", state)
    views = take_inventory(open_checkpoint(tmp_path / "tree")).views
    assert views and not [name for name in views if "tracker" in name]
