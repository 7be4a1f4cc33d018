"""The monitor's state where optax's own would be: serialised, mapped over, wrapped, divided over devices, copied."""

import copy
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import checkpoints, train_state
from jax.sharding import NamedSharding, PartitionSpec

import polarax
from tests.engine.tracking import trees

FOLLOWED = {"every": 2, "metrics": "change,scaling", "k": 4, "full_every": 4, "layers": "0", "include": "mlp"}


def _params():
    return trees.decoder(layers=1)


def _chain(arguments=FOLLOWED, rate=1e-2):
    return optax.chain(polarax.monitor(**arguments), optax.adam(rate))


@functools.cache
def _step(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def _run(tx, params, state, steps):
    for _ in range(steps):
        params, state = _step(tx)(params, state)
    return params, state


def _same(one, other):
    """Whether two trees are the same bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def trained():
    """A transformation, its state before and after three steps, the parameters, and what two more steps give."""
    tx, params = _chain(), _params()
    start = tx.init(params)
    now, state = _run(tx, params, start, 3)
    return tx, start, now, state, _run(tx, now, state, 2)


def _through_bytes(start, state, folder):
    return serialization.from_bytes(start, serialization.to_bytes(state))


def _through_state_dict(start, state, folder):
    return serialization.from_state_dict(start, serialization.to_state_dict(state))


def _through_msgpack(start, state, folder):
    written = serialization.msgpack_serialize(serialization.to_state_dict(jax.device_get(state)))
    return serialization.from_state_dict(start, serialization.msgpack_restore(written))


def _through_legacy_checkpoints(start, state, folder):
    checkpoints.save_checkpoint(folder, state, step=1)
    return checkpoints.restore_checkpoint(folder, start)


def _through_orbax(start, state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", jax.eval_shape(lambda: start))


def _through_orbax_pytree(start, state, folder):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "state", ocp.args.PyTreeSave(state))
        restore = ocp.checkpoint_utils.construct_restore_args(start)
        return checkpointer.restore(folder / "state", ocp.args.PyTreeRestore(start, restore_args=restore))


def _through_pickle(start, state, folder):
    return pickle.loads(pickle.dumps(state))


def _through_deepcopy(start, state, folder):
    return copy.deepcopy(state)


WAYS = [
    _through_bytes,
    _through_state_dict,
    _through_msgpack,
    _through_legacy_checkpoints,
    _through_orbax,
    _through_orbax_pytree,
    _through_pickle,
    _through_deepcopy,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_state_that_was_saved_goes_on_as_it_would_have(trained, tmp_path, way):
    tx, start, now, state, (params, after) = trained
    restored = way(start, state, tmp_path)
    _same(restored, state)
    metrics, expected = (optax.tree.get(tree, "metrics") for tree in (restored, state))
    assert metrics.labels == expected.labels
    np.testing.assert_equal(metrics.scalars(leading=True), expected.scalars(leading=True))
    assert metrics.histograms().keys() == expected.histograms().keys() != set()
    _same(_run(tx, now, restored, 2), (params, after))


def test_a_whole_train_state(tmp_path):
    state = train_state.TrainState.create(apply_fn=None, params=_params(), tx=_chain())
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.tree.map(jnp.sin, state.params)))
    moved = step(step(step(state)))
    checkpoints.save_checkpoint(tmp_path, moved, step=3)
    for restored in (
        serialization.from_bytes(state, serialization.to_bytes(moved)),
        checkpoints.restore_checkpoint(tmp_path, state),
    ):
        _same(step(restored), step(moved))
        metrics = optax.tree.get(restored.opt_state, "metrics")
        assert metrics.scalars()["spectra/step"] == 2 and metrics.scalars()["spectra/up/layer_00/drift"] > 0


def test_a_state_dict_of_something_else():
    state = _chain().init(_params())
    written = serialization.to_state_dict(state)
    del written["0"]["tracker"]["metrics"]["finite"]
    with pytest.raises(ValueError, match=r"polarax\.tracking\.Metrics do not match.*at path .*tracker/metrics"):
        serialization.from_state_dict(state, written)


def test_the_structure_stays_and_leaves_are_arrays(trained):
    _, start, _, state, _ = trained
    assert jax.tree.structure(start) == jax.tree.structure(state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(start)] == [
        (x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)
    ]


def test_in_a_scan(trained):
    tx, start, _, state, _ = trained

    @jax.jit
    def scanned(carry):
        return jax.lax.scan(lambda carry, _: (_step(tx)(*carry), None), carry, length=3)[0]

    found = optax.tree.get(scanned((_params(), start))[1], "metrics").scalars()
    expected = optax.tree.get(state, "metrics").scalars()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


IS_UP = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: "up_proj" in jax.tree_util.keystr(path))
UP = {"every": 2, "metrics": "change"}
WRAPPED = {
    "chain": _chain(UP),
    "MultiSteps": optax.MultiSteps(_chain(UP), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(lambda rate: _chain(UP, rate))(rate=1e-2),
    "multi_transform": optax.multi_transform(
        {"up": _chain(UP), "rest": _chain(UP, 1e-3)},
        lambda params: jax.tree.map(lambda up: "up" if up else "rest", IS_UP(params)),
    ),
    "masked": optax.chain(optax.masked(polarax.monitor(**UP), IS_UP), optax.adam(1e-2)),
    "apply_if_finite": optax.apply_if_finite(_chain(UP), 3),
    "named_chain": optax.named_chain(("spectra", polarax.monitor(**UP)), ("adam", optax.adam(1e-2))),
    "tracker given": optax.chain(polarax.monitor(polarax.Tracker(**UP)), optax.adam(1e-2)),
}


def _is_masked(node):
    return isinstance(node, optax.MaskedNode)


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_states_are_mapped_over_and_serialised(name):
    tx, params = WRAPPED[name], _params()
    start = tx.init(params)
    _, state = _run(tx, params, start, 2)
    metrics = optax.tree.get_all_with_path(state, "metrics")
    assert metrics and all(found.scalars() for _, found in metrics)
    if name != "named_chain":  # an OrderedDict, which Flax does not write
        _same(serialization.from_bytes(start, serialization.to_bytes(state)), state)
    _same(optax.tree.map_params(tx, lambda x: x, state), state)
    # Parameters are told from the rest.
    mapped = optax.tree.map_params(
        tx,
        lambda x: x if _is_masked(x) else 2 * x,
        state,
        transform_non_params=jnp.zeros_like,
        is_leaf=_is_masked,
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    moments, doubled = (optax.tree.get_all_with_path(tree, "mu") for tree in (state, mapped))
    _same([found for _, found in doubled], jax.tree.map(lambda x: 2 * x, [found for _, found in moments]))
    assert not any(np.any(found.readings["drift"]) for _, found in optax.tree.get_all_with_path(mapped, "metrics"))


@pytest.mark.parametrize("name", WRAPPED)
def test_partition_specs_by_optax(name):
    tx, params = WRAPPED[name], _params()
    state = jax.eval_shape(tx.init, params)
    by_params = jax.tree.map(lambda x: PartitionSpec(*("data",)[: x.ndim]), params)
    specs = optax.tree.map_params(
        tx,
        lambda x, spec: x if _is_masked(x) else spec,
        state,
        by_params,
        transform_non_params=lambda _: PartitionSpec(),
        is_leaf=_is_masked,
    )
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    mu = optax.tree.get_all_with_path(specs, "mu")
    assert mu and all(set(jax.tree.leaves(found)) == {PartitionSpec("data")} for _, found in mu)
    mesh = jax.make_mesh((1,), ("data",))
    divided = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    placed = jax.jit(tx.init, out_shardings=divided)(params)
    assert jax.tree.map(lambda x: x.sharding.spec, placed) == specs


def test_map_params_before_there_is_any_state():
    arguments = {"every": 7, "metrics": "change"}
    state = polarax.monitor(**arguments).init(_params())
    fresh = polarax.monitor(polarax.Tracker(**arguments))
    _same(optax.tree.map_params(fresh, lambda x: x, state), state)
    specs = optax.tree.map_params(fresh, lambda x: x, state, transform_non_params=lambda _: PartitionSpec())
    assert specs == polarax.tracking.MonitorState(PartitionSpec(), PartitionSpec())


def test_one_monitor_for_two_groups():
    monitor = polarax.monitor(every=1, metrics="change")
    tx = optax.multi_transform({True: monitor, False: monitor}, IS_UP)
    state = tx.init(_params())
    _same(optax.tree.map_params(tx, lambda x: x, state), state)


class _Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", None))
        return nn.Dense(6, kernel_init=init)(x)


def test_partition_specs_by_linen():
    params = _Boxed().init(jax.random.key(0), jnp.ones((1, 8)))
    tx = optax.chain(polarax.monitor(every=1, metrics="change"), optax.adam(1e-2))
    specs = nn.get_partition_spec(jax.eval_shape(tx.init, params))
    base = optax.tree.get(specs, "base")
    assert base == (PartitionSpec("data", None),) == (optax.tree.get(specs, "mu")["params"]["Dense_0"]["kernel"],)
    mesh = jax.make_mesh((1,), ("data",))
    divided = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    state = jax.jit(tx.init, out_shardings=divided)(params)
    start = params
    params, state = _run(tx, params, state, 1)
    params, state = _run(tx, params, state, 1)
    before, after = (tree["params"]["Dense_0"]["kernel"].unbox() for tree in (start, params))
    _, state = _run(tx, params, state, 1)
    drift = np.linalg.norm(after - before) / np.linalg.norm(before)
    found = optax.tree.get(state, "metrics").scalars()["spectra/other/Dense_0.kernel/drift"]
    assert found == pytest.approx(float(drift), rel=1e-5)
    _same(serialization.from_bytes(state, serialization.to_bytes(state)), state)


def test_in_flax_optimizer_and_out_of_it(tmp_path):
    def make():
        model = nnx.Linear(24, 20, rngs=nnx.Rngs(0))
        tx = optax.chain(polarax.monitor(every=1, metrics="change"), optax.adam(0.1))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 24))) ** 2))(model))

    model, optimizer = make()
    for _ in range(2):
        step(model, optimizer)
    graph, state = nnx.split((model, optimizer))
    specs = nnx.get_partition_spec(state)
    assert len(jax.tree.leaves(specs)) == len(jax.tree.leaves(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        from_orbax = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    pure = nnx.to_pure_dict(state)
    from_bytes = serialization.from_bytes(pure, serialization.to_bytes(pure))
    merged = [nnx.merge(graph, from_orbax)]
    again = make()
    target = nnx.state(again)
    nnx.replace_by_pure_dict(target, from_bytes)
    nnx.update(again, target)
    merged.append(again)
    step(model, optimizer)
    expected = optax.tree.get(optimizer.opt_state, "metrics").scalars()
    assert expected["spectra/step"] == 2
    for model, optimizer in merged:
        step(model, optimizer)
        assert optax.tree.get(optimizer.opt_state, "metrics").scalars() == expected


def _drift(tx, params, state):
    for _ in range(2):
        params, state = _step(tx)(params, state)
    return optax.tree.get(state, "metrics").readings["drift"]


@pytest.mark.parametrize("kind", ["jit", "vmap", "pmap", "shard_map", "donated"])
def test_transformed_by_jax(kind):
    tx, params = _chain({"every": 1, "metrics": "change"}), _params()
    expected = np.asarray(_drift(tx, params, tx.init(params)))
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    one = jax.tree.map(lambda x: x[None], params)

    def whole(params):
        return _drift(tx, params, tx.init(params))

    if kind == "vmap":
        found = jax.vmap(whole)(both)[0]
    elif kind == "pmap":
        found = jax.pmap(whole)(one)[0]
    elif kind == "shard_map":
        mesh, spec = jax.make_mesh((1,), ("data",)), PartitionSpec()
        found = jax.jit(jax.shard_map(whole, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(params)
    elif kind == "donated":
        donating = jax.jit(_step(tx), donate_argnums=(0, 1))
        _, state = donating(*donating(_params(), tx.init(params)))
        found = optax.tree.get(state, "metrics").readings["drift"]
    else:
        found = jax.jit(whole)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_in_float64():
    with jax.enable_x64(True):
        tx, params = _chain({"every": 1, "metrics": "change"}), trees.decoder(layers=1, dtype="float64")
        start = tx.init(params)
        _, state = _run(tx, params, start, 2)
        _same(serialization.from_bytes(start, serialization.to_bytes(state)), state)
        assert optax.tree.get(state, "base")[0].dtype == np.float64


def test_metrics_are_found_set_and_cast_as_in_other_states(trained):
    state = trained[3]
    assert optax.tree.get(state, "metrics") is state[0].tracker.metrics
    metrics = optax.tree.get(state, "metrics")
    assert optax.tree.get(optax.tree.set(state, metrics=metrics), "metrics").labels == metrics.labels
    halved = jax.tree.map(lambda x: x / 2, state)
    assert jax.tree.structure(halved) == jax.tree.structure(state)
