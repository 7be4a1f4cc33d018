"""Follows parameters that are divided over 8 simulated devices; prints what it saw as JSON. Run by test_sharding.py."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import polarax

# q and o are square: nothing in their shapes says that they are divided the other way round.
SHAPES = {"q_proj": (96, 96), "k_proj": (96, 64), "o_proj": (96, 96), "up_proj": (96, 160), "down_proj": (160, 96)}
LAYOUTS = {
    "fsdp": (PartitionSpec(("x", "y"), None),) * 2,
    "tensor": (PartitionSpec(None, "y"), PartitionSpec("y", None)),
    "both": (PartitionSpec("x", "y"), PartitionSpec("y", "x")),
}


# Leading vectors that are followed.
K = 4


def parameters():
    """Two layers of random matrices."""
    rng = np.random.default_rng(0)

    def block():
        return {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in SHAPES.items()}

    return {f"layers_{layer}": block() for layer in range(2)}


def moved(params):
    """After the two steps between the measurements."""
    for _ in range(2):
        params = jax.tree.map(lambda x: x - np.float32(0.01) * np.sin(7 * x), params)
    return params


def main(layout, metrics, axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(getattr(AxisType, axes),) * 2)
    host = parameters()

    def place(path, x):
        column = path[1].key in ("q_proj", "k_proj", "up_proj")
        return jax.device_put(x, NamedSharding(mesh, LAYOUTS[layout][0 if column else 1]))

    params = jax.tree.map_with_path(place, host)
    tracker = polarax.Tracker(every=2, k=K, metrics=metrics)
    with jax.set_mesh(mesh):
        state = tracker.init(params)

        def step(params, state, number):
            state, metrics = tracker.update(state, params, number)
            return jax.tree.map(lambda x: x - 0.01 * jnp.sin(7 * x), params), state, metrics

        jitted = jax.jit(step, donate_argnums=(0, 1))
        compiled = jitted.lower(params, state, jnp.int32(0)).compile()
        base_shards = [x.addressable_shards[0].data.size / x.size for x in state.base]
        params_now = params
        for number in range(3):
            params_now, state, found = jitted(params_now, state, jnp.int32(number))
    gathered = []
    for line in compiled.as_text().splitlines():
        match = re.search(r"=\s*(\(?[^=]*?)\s(?:all-gather|all-gather-start|all-to-all)\(", line)
        for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]) if match else ():
            gathered.append([int(size) for size in dims.split(",") if size])
    alone = polarax.Tracker(every=2, k=K, metrics=metrics)
    expected = alone.update(alone.init(host), moved(host), 2)[1]
    skipped = ("previous", "_z")
    print(
        json.dumps(
            {
                "gathered": gathered,
                "programs": jitted._cache_size(),
                "shards": base_shards,
                "sharded": {n: v for n, v in found.scalars().items() if not n.endswith(skipped)},
                "alone": {n: v for n, v in expected.scalars().items() if not n.endswith(skipped)},
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
