"""What belongs to an optimiser or a tracker, and modules that are merely called so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import train_state

import polarax
from polarax.loaders import open_checkpoint
from polarax.loaders.formats.parameter_tree import ParameterTree
from polarax.loaders.matrices import take_inventory
from polarax.loaders.matrices.optimizer_state import OPTIMIZER, optimizer_names

PARAMS = {"blocks_0": {"q_proj": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}, "o_proj": {"kernel": jnp.eye(6)}}}
MODEL = ("transformer.layers.0.self_attn.q_proj.weight", "transformer.layers.0.self_attn.out_proj.weight")


def _found(tree):
    return optimizer_names(ParameterTree(tree, abstract=True))


def _named(*names, shape=(4, 4)):
    """A tree of arrays that are named so."""
    return {name: np.zeros(shape, np.float32) for name in names}


def _beneath(*words):
    """The names of a model, beneath each of some words."""
    return [f"{word}.{name}" for word in words for name in MODEL]


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "momentum": optax.sgd(1e-2, momentum=0.9),
    "lion": optax.lion(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "adagrad": optax.adagrad(1e-3),
    "adadelta": optax.adadelta(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=2),
    "amsgrad": optax.amsgrad(1e-3),
    "adan": optax.adan(1e-3),
    "rprop": optax.rprop(1e-3),
    "ema": optax.chain(optax.sgd(1e-2), optax.ema(0.9)),
    "muon": optax.contrib.muon(1e-3),
    "prodigy": optax.contrib.prodigy(1e-3),
    "schedule-free": optax.contrib.schedule_free_sgd(1e-2),
    "named chain": optax.named_chain(("clip", optax.clip(1.0)), ("trace", optax.trace(0.9))),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "multi_transform": optax.multi_transform({"all": optax.trace(0.9)}, lambda p: jax.tree.map(lambda _: "all", p)),
    "masked": optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "MultiSteps": optax.MultiSteps(optax.sgd(1e-2), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(optax.trace(0.9), 3),
    "monitor": optax.chain(polarax.monitor(every=1, metrics="change"), optax.sgd(1e-2)),
}


@pytest.mark.parametrize("key", ["opt_state", "optimizer", "optimizer_state", "optim", "opt_states"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_every_optimizer_beside_its_parameters(kind, key):
    state = jax.eval_shape(OPTIMIZERS[kind].init, PARAMS)
    for tree in ({"params": PARAMS, key: state}, {"train": {"model": PARAMS, key: state, "step": jnp.zeros(())}}):
        checkpoint = ParameterTree(tree, abstract=True)
        kept = {name for name in checkpoint.names() if key in name.split(".") and len(checkpoint.shape(name)) > 1}
        assert kept <= optimizer_names(checkpoint)
        views = take_inventory(checkpoint).views
        assert sorted(name.rpartition("blocks_0.")[2] for name in views) == ["o_proj.kernel", "q_proj.kernel"]


@pytest.mark.parametrize(
    "names",
    [
        [f"optimizer.state.{i}.{moment}" for i in range(2) for moment in ("exp_avg", "exp_avg_sq")],
        [f"optimizer.state.{moment}.decoder.{name}" for name in MODEL for moment in ("exp_avg", "fp32_param")],
        [f"chained_0.optimizer.state.exp_avg.{name}" for name in MODEL],
        [f"optim.state.{name}.{moment}" for name in MODEL for moment in ("exp_avg", "exp_avg_sq")],
        [f"optimizer_states.0.state.{i}.momentum_buffer" for i in range(2)],
        [f"optimizer_state_dict.state.{i}.exp_avg" for i in range(2)],
        [f"state.optimizer.{name}" for name in ("param_groups.0.betas", "param_groups.0.params")],
        [f"state.param_states.{name}.{moment}" for name in MODEL for moment in ("m", "v")],
        [f"optimizer/state/param_states/encoder/{moment}" for moment in ("grad_ema", "grad_sq_ema")],
        [f"opt_state.{moment}.params.{name}" for name in MODEL for moment in ("mu", "nu")],
        [f"optimizer.{moment}.{name}" for name in MODEL for moment in ("mu", "nu")],
    ],
    ids=lambda names: names[0],
)
def test_names_that_others_store(names):
    assert _found(_named(*MODEL, *names)) == set(names)


@pytest.mark.parametrize("word", ["tracker", "optim", "optimizer", "opt_state", "tracker.model", "optim.model"])
@pytest.mark.parametrize("beside", ["detector", "model", "tracker.decoder"])
def test_modules_that_are_called_so(word, beside):
    names = _beneath(beside, "model.heads." + word, *([word] if word != "opt_state" else []))
    assert not _found(_named(*names))
    views = take_inventory(ParameterTree(_named(*names))).views
    assert list(views) == names


@pytest.mark.parametrize(
    "name",
    ["model.optim_head.weight", "adopt_state.weight", "trackers.0.weight", "optim.mu.weight", "optimizer.v.weight"],
)
def test_words_that_only_resemble(name):
    assert not _found(_named(*MODEL, name))


def test_random_streams_of_a_module_are_no_counts():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.optim = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
            self.optim.append(nnx.Dropout(0.1, rngs=rngs))

    net = Net(nnx.Rngs(0))
    assert not _found(net)


def test_parameters_that_an_optimizer_holds_are_parameters():
    moments = [
        f"optimizer.state.param_states.{name}.{moment}" for name in MODEL for moment in ("grad_ema", "grad_sq_ema")
    ]
    assert _found(_named(*_beneath("optimizer.target"), *moments)) == set(moments)


def _tracked(tracker, **beside):
    return {**beside, "tracker": tracker.init(PARAMS)}


@pytest.mark.parametrize(
    "arguments", [{"metrics": "change"}, {"full_every": 1, "metrics": "change,budget,rotation"}, {}]
)
@pytest.mark.parametrize("place", ["tracker", "spectra", "trackers.0", ""])
def test_what_a_tracker_stores_under_any_name(arguments, place):
    state = jax.eval_shape(polarax.Tracker(every=1, **arguments).init, PARAMS)
    tree = {"params": PARAMS}
    if place:
        for word in reversed(place.split(".")):
            state = {word: state}
        tree |= state
    else:
        tree = state
    checkpoint = ParameterTree(tree, abstract=True)
    own = {name for name in checkpoint.names() if not name.startswith("blocks_0")}
    assert optimizer_names(checkpoint) == own
    assert all(reason == OPTIMIZER for name, reason in take_inventory(checkpoint).reasons.items() if name in own)


def test_a_module_called_tracker_with_a_tracker_beside_it():
    params = {"tracker": PARAMS, "detector": PARAMS}
    state = polarax.Tracker(every=1, metrics="change").init(params)
    checkpoint = ParameterTree({"params": params, "tracker": state})
    views = take_inventory(checkpoint).views
    assert sorted(views) == [
        f"{part}.blocks_0.{name}.kernel" for part in ("detector", "tracker") for name in ("o_proj", "q_proj")
    ]


def test_saved_and_serialised_states_have_the_same_names(tmp_path):
    tx = optax.chain(polarax.monitor(every=1, metrics="change"), optax.adam(1e-3))
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    for tree in (state, serialization.to_state_dict(state), tmp_path / "state"):
        inventory = take_inventory(open_checkpoint(tree))
        assert sorted(inventory.views) == ["blocks_0.o_proj.kernel", "blocks_0.q_proj.kernel"]
        ours = {name: reason for name, reason in inventory.reasons.items() if name.startswith("opt_state.0.tracker")}
        assert "opt_state.0.tracker.base.0" in ours and set(ours.values()) == {OPTIMIZER}


def test_modules_in_many_layers_and_their_moments():
    names = [f"model.layers.{i}.optim.{j}.weight" for i in range(300) for j in range(150)]
    moments = [f"optimizer.0.trace.model.layers.{i}.optim.{j}.weight" for i in range(300) for j in range(150)]
    checkpoint = ParameterTree(_named(*names, *moments, shape=(1, 1)))
    assert optimizer_names(checkpoint) == set(moments)
