"""One of two processes that follow parameters divided over both; prints what it saw as JSON. Run by test_hosts.py."""

import faulthandler
import functools
import json
import pathlib
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import polarax
from polarax.errors import UsageError
from polarax.tracking import JsonlWriter

# (in, out), of one shape when turned to be tall: one program measures them all. With a stack of layers and one whose
# layers are themselves divided.
ROWS, COLUMNS = 48, 24
SHAPES = {
    ("layers_0", "q_proj"): (ROWS, COLUMNS),
    ("layers_0", "o_proj"): (COLUMNS, ROWS),
    ("layers_0", "up_proj"): (COLUMNS, ROWS),
    ("blocks", "down_proj"): (2, ROWS, COLUMNS),
    ("blocks", "k_proj"): (4, ROWS, COLUMNS),
}
DIVISIONS = {
    "q_proj": PartitionSpec("x", None),
    "o_proj": PartitionSpec(None, "x"),
    "up_proj": PartitionSpec(),
    "down_proj": PartitionSpec(None, "x", None),
    "k_proj": PartitionSpec("x", None, None),
}
K = 4  # leading values that are followed
STEPS = (0, 2, 4)  # that are measured
LIMIT = 30  # seconds to wait for the other process


@functools.cache
def tracker(**arguments):
    """As every run has it; one for all, since each compiles its own."""
    return polarax.Tracker(every=2, k=K, metrics="change,scaling", **arguments)


def parameters(step):
    """On every host, in float32: a decaying spectrum, and what training moves of it in so many steps."""
    rng, noise, params = np.random.default_rng(0), np.random.default_rng(1), {}
    for (layer, name), shape in SHAPES.items():
        decay = 10.0 ** -np.linspace(0, 3, COLUMNS)
        left, right = (np.linalg.qr(rng.normal(size=(*shape[:-2], size, COLUMNS)))[0] for size in shape[-2:])
        kernel = (left * decay) @ np.swapaxes(right, -1, -2)
        kernel += step * (0.002 * kernel + 1e-4 * noise.normal(size=shape))
        params.setdefault(layer, {})[name] = {"kernel": kernel.astype(np.float32)}
    return params


def placed(mesh, tree):
    """Divided over all devices of all processes."""

    def place(path, x):
        sharding = NamedSharding(mesh, DIVISIONS[path[1].key])
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map_with_path(place, tree)


def local(tree):
    """Numbers of a tree that the devices of this process hold."""
    return sum(shard.data.size for x in jax.tree.leaves(tree) for shard in x.addressable_shards)


class Marks:
    """Files by which the two processes wait for each other: JAX takes no part in it."""

    def __init__(self, folder, process):
        """Takes a folder that both see, and the number of this process."""
        self._folder, self._process = folder, process

    def put(self, name):
        """Says that this process has come to a place."""
        (self._folder / f"{name}-{self._process}").touch()

    def wait(self, name):
        """Waits until the other has."""
        deadline = time.monotonic() + LIMIT
        while not (self._folder / f"{name}-{1 - self._process}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {1 - self._process} did not come to {name!r}")
            time.sleep(0.01)


def main(address, process, folder):
    faulthandler.dump_traceback_later(LIMIT * 4, exit=True)
    process, folder = int(process), pathlib.Path(folder)
    # Made before JAX starts, as nothing keeps a training script from doing.
    writers = [
        JsonlWriter(folder / f"one/{process}.jsonl"),
        JsonlWriter(folder / f"each/{process}.jsonl", every_process=True),
    ]
    jax.distributed.initialize(address, 2, process, cluster_detection_method="deactivate", initialization_timeout=LIMIT)
    marks, seen = Marks(folder, process), {}
    for axes in ("Explicit", "Auto"):
        mesh = jax.make_mesh((4,), ("x",), axis_types=(getattr(AxisType, axes),))
        params = {step: placed(mesh, parameters(step)) for step in STEPS}
        seen[axes] = followed(params)
    seen["monitor"] = monitored(params)
    seen["divided state"] = followed_with_the_state_divided(params, mesh)
    seen["restored"] = restored(params, folder / "by_one")
    save(params, folder / "by_two")
    read_alone(params, writers, marks)
    seen["early"] = measured_together(params, marks)
    print(json.dumps(seen))
    jax.distributed.shutdown()


def followed(params):
    """Readings at every step."""
    state = jax.jit(tracker().init)(params[0])
    assert local(state.base) == local(params[0])  # divided as the parameters are
    update, readings = jax.jit(tracker().update, donate_argnums=0), {}
    for step in STEPS:
        state, metrics = update(state, params[step], jnp.int32(step))
        assert all(x.is_fully_replicated for x in jax.tree.leaves(metrics))
        readings[step] = metrics.scalars()
    return readings


def monitored(params):
    """Those at the first step, by the transformation, outside `jit`."""
    optimizer = optax.chain(polarax.monitor(tracker()), optax.sgd(0.1))
    state = optimizer.init(params[0])
    assert not any(x.is_fully_addressable for x in jax.tree.leaves(state))  # all may be saved by both
    updates, state = optimizer.update(params[0], state, params[0])
    return {0: optax.tree.get(state, "metrics").scalars()}


def followed_with_the_state_divided(params, mesh):
    """Those of a training step that divides whatever can be divided of its state, and the error of the state's own."""

    def divided(x):
        return NamedSharding(mesh, PartitionSpec("x") if x.shape and x.shape[0] % mesh.size == 0 else PartitionSpec())

    part = tracker(include="blocks.k_proj")  # of 4 matrices: readings are divided too
    shardings = jax.tree.map(divided, jax.eval_shape(part.init, params[0]))
    state = jax.jit(part.init, out_shardings=shardings)(params[0])
    update = jax.jit(part.update, donate_argnums=0, out_shardings=(shardings, None))
    state, metrics = update(state, params[0], jnp.int32(0))
    try:
        state.metrics.scalars()
    except UsageError as error:
        assert "divided over processes" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("metrics of a divided state were read")
    return {0: metrics.scalars()}


def save(params, path):
    """Saves a tracker after the second measurement."""
    state = tracker().init(params[0])
    for step in STEPS[:2]:
        state, _ = tracker().update(state, params[step], step)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)


def restored(params, path):
    """The last readings of a tracker that was saved, by whichever number of processes."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(path, tracker().init(params[0]))
    assert state.metrics.step == STEPS[1]
    return {STEPS[2]: tracker().update(state, params[STEPS[2]], STEPS[2])[1].scalars()}


def read_alone(params, writers, marks):
    """Does all that a process may do alone, while the other one does nothing: first one of them, then the other."""
    state, metrics = tracker().update(tracker().init(params[0]), params[0], 0)
    jax.block_until_ready(metrics)
    for turn in (0, 1):
        if jax.process_index() != turn:
            marks.wait(f"alone-{turn}")
            continue
        for writer in writers:
            writer.write(0, metrics.scalars())
        assert metrics.nonfinite() == [] and float(metrics.readings["drift"][0]) == 0
        assert tracker().plan(params[0]).matrices == len(metrics.labels)
        assert tracker().update(state, params[STEPS[1]], 1)[0] is state  # not a step to measure at
        try:
            tracker().update(state, jax.device_put(parameters(0), jax.local_devices()[0]), 0)
        except UsageError as error:
            assert "is on other devices than the copy" in str(error)
        else:
            raise AssertionError("parameters on one device were measured with a state on all")
        marks.put(f"alone-{turn}")


def measured_together(params, marks):
    """Whether one process came to the end of a measurement that the other had not begun."""
    state, metrics = tracker().update(tracker().init(params[0]), params[0], 0)  # compiles
    jax.block_until_ready(metrics)

    def measure():
        jax.block_until_ready(tracker().update(state, params[STEPS[1]], STEPS[1]))

    if jax.process_index() == 0:
        marks.wait("begun")
        time.sleep(0.5)  # in which a measurement that needs nobody would be done many times over
        marks.put("waited")
        marks.wait("looked")
        measure()
        return None
    measuring = threading.Thread(target=measure)
    measuring.start()
    marks.put("begun")
    marks.wait("waited")
    early = not measuring.is_alive()
    marks.put("looked")
    measuring.join()
    return early


if __name__ == "__main__":
    main(*sys.argv[1:])
