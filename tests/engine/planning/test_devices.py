"""A stack divided over several devices; eight simulated ones, in a process of its own."""

import os
import subprocess
import sys
import textwrap

import jax
import pytest

from polarax.planning import devices
from polarax.planning.devices import stack_mesh, working_dtype, working_method
from tests.simulated_devices import xla_flags


def on_devices(count, script, timeout=240):
    environment = {**os.environ, "XLA_FLAGS": xla_flags(count), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_device_needs_no_mesh():
    assert jax.local_device_count() > 1 or stack_mesh() is None


def test_auto_precision_is_float64_on_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("looks at the CPU's choice")
    assert working_dtype("auto") == "float64"
    assert working_dtype("float32") == "float32"


@pytest.mark.parametrize(
    ("backend", "kind", "dtype", "method"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "float64", "auto"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "float64", "auto"),
        ("gpu", "Tesla V100-SXM2-16GB", "float64", "auto"),
        ("gpu", "AMD Instinct MI300X", "float64", "auto"),
        ("gpu", "NVIDIA GeForce RTX 4090", "float32", "polar"),
        ("gpu", "NVIDIA A10G", "float32", "polar"),
        ("gpu", "NVIDIA L40S", "float32", "polar"),
        ("gpu", "Tesla T4", "float32", "polar"),
        ("tpu", "TPU v5 lite", "float32", "polar"),
        ("cpu", "cpu", "float64", "auto"),
    ],
)
def test_the_kind_of_device_chooses(monkeypatch, backend, kind, dtype, method):
    device = type("Device", (), {"device_kind": kind})()
    monkeypatch.setattr(devices.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(devices.jax, "local_devices", lambda: [device])
    assert working_dtype("auto") == dtype
    assert working_method("auto") == method
    assert working_method("gram") == "gram"


def test_a_sharded_stack_has_no_collective_and_the_same_results():
    on_devices(
        4,
        """
        import re
        import jax, numpy as np
        from polarax.planning.devices import stack_mesh, stack_sharding
        from polarax.measuring.program import measure_stack
        from polarax.planning.measurement import Measurement

        rng = np.random.default_rng(0)
        base = rng.normal(size=(8, 24, 16)).astype(np.float32)
        post = base + 0.01 * rng.normal(size=base.shape).astype(np.float32)
        mesh = stack_mesh()
        assert mesh.size == 4
        with jax.enable_x64(True):
            placed = [jax.device_put(x, stack_sharding(mesh)) for x in (base, post)]
            assert {shard.data.shape for shard in placed[0].addressable_shards} == {(2, 24, 16)}
            base_there, post_there = placed
            program = measure_stack.lower(base_there, (post_there,), measurement=Measurement(), mesh=mesh).compile()
            text = program.as_text()
            found = re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)
            assert not found, set(found)
            sharded = jax.device_get(program(base_there, (post_there,)))
            alone = jax.device_get(measure_stack(base, (post,), measurement=Measurement()))
        for name, values in alone.posts[0].items():
            np.testing.assert_allclose(sharded.posts[0][name], values, rtol=1e-9, atol=1e-12, err_msg=name)
        """,
    )


def test_compare_pads_a_stack_that_does_not_divide():
    out = on_devices(
        3,
        """
        import jax, numpy as np, polarax

        assert jax.local_device_count() == 3
        rng = np.random.default_rng(0)
        base = {f"layers.{i}.mlp.up_proj": rng.normal(size=(12, 8)).astype(np.float32) for i in range(5)}
        post = {name: 1.5 * values for name, values in base.items()}
        run = polarax.compare(base, post, progress=False)
        frame = run.frame()
        assert len(frame) == 5 and set(frame.status) == {"ok"}
        np.testing.assert_allclose(frame.alpha, 1.5, rtol=1e-6)
        for name, values in base.items():
            np.testing.assert_allclose(run.spectra(name)[0], np.linalg.svd(values.astype(np.float64))[1], rtol=1e-7)
        print("done")
        """,
    )
    assert "done" in out
