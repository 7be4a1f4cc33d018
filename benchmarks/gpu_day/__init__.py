"""A day on a GPU in eight minutes: what its products, torch, jnp and polarax reach on it, and which targets are met.

    python -m benchmarks.gpu_day --out=DIR

From the root of the repository as it lies: nothing has to be installed but JAX and NumPy, and torch for what it is
compared with. `--smallest` is the same on tiny matrices, to see on any machine that it runs.

Every part is a process of its own with its own limit, and writes each number as it has it: what is cut off loses
nothing. DIR gets results.jsonl (as they come), results.json and results.md.
"""
