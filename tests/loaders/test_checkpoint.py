import numpy as np
import pytest

import polarax.loaders
from polarax.loaders import CheckpointError, open_checkpoint


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"a.kernel": (3, 4), "b": (5000, 3), "c": (1, 100_000), "d": (), "e": (0, 3)}
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def test_an_error_is_one_line():
    assert str(CheckpointError("a\nb\r\nc")) == "a b c"
    assert isinstance(CheckpointError("x"), ValueError)


def test_a_fingerprint_depends_on_content_alone(arrays, save, tmp_path):
    stored = {name: array for name, array in arrays.items()}
    stored["a.kernel"] = np.ascontiguousarray(arrays["a.kernel"].T)  # as (out, in)
    single = open_checkpoint(save(tmp_path / "model.safetensors", stored)).fingerprint()
    (tmp_path / "sharded").mkdir()
    for number, name in enumerate(reversed(list(stored))):
        save(tmp_path / f"sharded/{number}.safetensors", {name: stored[name]})
    assert open_checkpoint(tmp_path / "sharded").fingerprint() == single
    assert open_checkpoint(arrays).fingerprint() == single
    assert len(single) == 16
    int(single, 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("b"),
        lambda arrays: arrays.update(f=arrays["b"]),
        lambda arrays: arrays.update(b=arrays["b"] + 1e-9),
        lambda arrays: arrays.update(c=-arrays["c"]),
        lambda arrays: arrays.update(d=arrays["d"] * 2),
        lambda arrays: arrays.update(e=np.zeros((0, 4))),
        lambda arrays: arrays.update(b=arrays["b"].reshape(3, 5000)),
        lambda arrays: arrays.update(b=arrays["b"].view(np.int64)),
    ],
)
def test_a_fingerprint_notices(arrays, change):
    before = open_checkpoint(arrays).fingerprint()
    change(arrays)
    assert open_checkpoint(arrays).fingerprint() != before


def test_a_fingerprint_reads_a_page_of_each_tensor(arrays, save, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(save(tmp_path / "model.safetensors", arrays))
    sizes = []
    read = type(checkpoint).read

    def spy(self, name, index=None):
        pending = read(self, name, index)
        sizes.append(pending.result().nbytes)
        return pending

    monkeypatch.setattr(type(checkpoint), "read", spy)
    checkpoint.fingerprint()
    assert len(sizes) == len(arrays)
    assert max(sizes) <= 4096


def test_a_checkpoint_opens_as_itself(arrays):
    checkpoint = open_checkpoint(arrays)
    assert open_checkpoint(checkpoint) is checkpoint


def test_the_public_names_are_there():
    for name in polarax.loaders.__all__:
        assert getattr(polarax.loaders, name) is not None
