"""A decoder divided over the devices of a mesh says what it says on one; in a process that has several."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from polarax.evaluation import Settings, generate, load_decoder, measure
from tests.engine.evaluation import models
from tests.simulated_devices import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[3]
_CODE = """
import json, sys
import jax, numpy as np
from polarax.evaluation import Settings, generate, load_decoder, measure
from tests.engine.evaluation import models

shape, axes = json.loads(sys.argv[2]), json.loads(sys.argv[3])
mesh = jax.make_mesh(shape, axes)
model = load_decoder(sys.argv[1], mesh=mesh)
found = measure(model, models.text(200), model, Settings(window=32, batch=4))
kernel = model.layers.self_attn.q_proj.kernel[...]
print(json.dumps({
    "loss": found.loss,
    "entropy": found.attention_entropy.tolist(),
    "cka": found.cka.tolist(),
    "written": generate(model, [[1, 2, 3], [4]], 6),
    "part": kernel.addressable_shards[0].data.shape,
}))
"""


@pytest.mark.parametrize(("name", "shape", "axes"), [("gemma3", [2, 2], ["data", "model"]), ("qwen2", [4], ["model"])])
def test_a_mesh_changes_nothing(name, shape, axes, tmp_path):
    config = models.CONFIGS[name]
    folder = models.save(tmp_path, config, models.tensors_of(config))
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(folder), json.dumps(shape), json.dumps(axes)],
        env=os.environ
        | {"XLA_FLAGS": xla_flags(4), "JAX_PLATFORMS": "cpu"}
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    model = load_decoder(folder)
    expected = measure(model, models.text(200), model, Settings(window=32, batch=4))
    ways = shape[-1]
    whole = model.layers.self_attn.q_proj.kernel[...].shape
    assert found["part"] == [*whole[:2], whole[2] // ways]
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(found["entropy"], expected.attention_entropy, atol=1e-4)
    np.testing.assert_allclose(found["cka"], expected.cka, atol=1e-4)
    assert found["written"] == generate(model, [[1, 2, 3], [4]], 6)
