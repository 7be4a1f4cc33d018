"""The tracker in a chain of optax: updates untouched, numbers found in the state, and through Flax's optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import polarax
from polarax.errors import UsageError
from tests.engine.tracking import trees


def test_updates_are_untouched_and_numbers_in_the_state():
    params = trees.decoder()
    plain, followed = optax.adam(1e-2), optax.chain(polarax.monitor(every=2, metrics="change"), optax.adam(1e-2))
    plain_state, state = plain.init(params), followed.init(params)
    start, moved = params, None
    update = jax.jit(followed.update)
    for _ in range(4):
        if int(optax.tree.get(state, "count", filtering=lambda path, _: "MonitorState" in str(path))) == 2:
            moved = params
        grads = jax.tree.map(jnp.sign, params)
        expected, plain_state = plain.update(grads, plain_state, params)
        updates, state = update(grads, state, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), updates, expected)
        params = optax.apply_updates(params, updates)
    metrics = optax.tree.get(state, "metrics")
    assert int(metrics.step) == 2
    name = "layers_0.self_attn.q_proj.kernel"
    before, after = trees.weight(start, name), trees.weight(moved, name)
    drift = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert metrics.scalars()["spectra/q/layer_00/drift"] == pytest.approx(drift, rel=1e-4)


def test_in_flax_optimizer():
    model = nnx.Linear(24, 20, rngs=nnx.Rngs(0))
    tracker = polarax.Tracker(every=1, metrics="change")
    optimizer = nnx.Optimizer(model, optax.chain(polarax.monitor(tracker), optax.sgd(0.1)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 24))) ** 2))(model))

    for _ in range(2):
        step(model, optimizer)
    metrics = optax.tree.get(optimizer.opt_state, "metrics")
    assert metrics.scalars()["spectra/other/kernel/drift"] > 0


def test_without_parameters():
    transformation = polarax.monitor(every=1, metrics="change")
    state = transformation.init(trees.decoder())
    with pytest.raises(UsageError, match=r"optimizer\.update\(grads, state, params\)"):
        transformation.update(trees.decoder(), state)


def test_a_tracker_or_its_arguments():
    with pytest.raises(UsageError, match="not both. Got every"):
        polarax.monitor(polarax.Tracker(), every=3)


def test_optax_is_needed_only_when_used(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optax", None)
    with pytest.raises(UsageError, match="pip install"):
        polarax.monitor()
