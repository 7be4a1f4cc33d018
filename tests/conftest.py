"""Settings that hold for every test."""

import os

import hypothesis

# What tests expect is measured on the CPU; a platform that was asked for wins. Set here because no
# test module has imported jax yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A property's first example compiles, which no deadline allows for. Each run has the same ones.
hypothesis.settings.register_profile("polarax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("polarax")
