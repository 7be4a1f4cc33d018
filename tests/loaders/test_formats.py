"""What a format has to say of itself: one class is enough for all that is done with checkpoints."""

import numpy as np
import pytest
import tensorstore as ts
from safetensors.numpy import save_file

import polarax
from polarax.cli import main
from polarax.loaders import Checkpoint, CheckpointError, Read, find_steps, formats
from polarax.loaders.checkpoint import TensorInfo
from polarax.loaders.hub_cache import resolve_hub_path
from polarax.loaders.stores.store import local_path
from polarax.planning.post_labels import named_posts

NAME = "model.layers.0.self_attn.q_proj.weight"


class ToyCheckpoint(Checkpoint):
    """One matrix."""

    def __init__(self, source):
        self._array = np.load(local_path(source))
        info = TensorInfo(self._array.shape, self._array.dtype, self._array.dtype.name, self._array.nbytes)
        super().__init__(str(source), ToyFormat.name, {NAME: info})

    def read(self, name, index=None):
        self._info(name)
        promise, future = ts.Promise.new()
        promise.set_result(self._array if index is None else self._array[index])
        return Read(future, np.asarray, self.location)


class ToyFormat(formats.Format):
    """A matrix, as NumPy saves it."""

    name = "toy"
    suffixes = (".toy",)

    def open(self, source):
        return ToyCheckpoint(source)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", [*formats.FORMATS])
    formats.register(ToyFormat())


@pytest.fixture
def run(tmp_path, toy):
    """The steps of a training run, each a file."""
    for step in (100, 20, 3):
        with (tmp_path / f"step_{step}.toy").open("wb") as file:
            np.save(file, matrix(step))
    (tmp_path / "notes-4.txt").write_text("no checkpoint")
    return tmp_path


def matrix(step):
    return (1 + step / 1000) * np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)


def test_a_format_of_one_class_is_opened(run):
    for source in (run / "step_20.toy", (run / "step_20.toy").as_uri()):
        checkpoint = polarax.open_checkpoint(source)
        assert checkpoint.format == "toy"
        np.testing.assert_array_equal(checkpoint.read(NAME, slice(2, 4)).result(), matrix(20)[2:4])


def test_the_only_file_of_a_folder_is_opened(run):
    with pytest.raises(CheckpointError, match=r"has several toy checkpoints; name one of them: step_100\.toy, step_20"):
        polarax.open_checkpoint(run)
    for step in (100, 20):
        (run / f"step_{step}.toy").unlink()
    np.testing.assert_array_equal(polarax.open_checkpoint(run).read(NAME).result(), matrix(3))


def test_it_is_planned(run, capsys):
    assert main(["plan", f"--base={run / 'step_3.toy'}", f"--post={run / 'step_100.toy'}"]) == 0
    assert "0000-12x8" in capsys.readouterr().out


def test_it_is_compared(run):
    base, post = run / "step_3.toy", run / "step_100.toy"
    frame = polarax.compare(base, post, metrics="scaling", progress=False).frame()
    assert frame["role"].tolist() == ["q"]
    np.testing.assert_allclose(frame["alpha"], 1.1 / 1.003, rtol=1e-6)


def test_its_steps_are_a_history(run):
    assert list(find_steps(run)) == [3, 20, 100]
    assert list(find_steps(str(run / "step_*"))) == [3, 20, 100]
    frame = polarax.history(run, metrics="scaling", progress=False).frame()
    assert frame["step"].tolist() == [20, 100]


def test_its_posts_are_labelled_without_the_ending(run):
    assert list(named_posts([str(run / "step_3.toy"), "runs/rl.toy"])) == ["step_3", "rl"]


def test_it_is_found_in_the_cache_of_the_hub(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name/snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    snapshot.mkdir(parents=True)
    assert resolve_hub_path("hf://owner/name") == "hf://owner/name"
    (snapshot / "weights.toy").symlink_to("../../blobs/not-there-yet")
    assert resolve_hub_path("hf://owner/name") == "hf://owner/name"
    (snapshot / "weights.toy").unlink()
    (snapshot / "weights.toy").write_bytes(b"")
    assert resolve_hub_path("hf://owner/name") == str(snapshot)


def test_without_its_registration_nothing_knows_it(tmp_path):
    with (tmp_path / "step_3.toy").open("wb") as file:
        np.save(file, matrix(3))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        polarax.open_checkpoint(tmp_path / "step_3.toy")
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        polarax.open_checkpoint(tmp_path)
    assert list(named_posts([str(tmp_path / "step_3.toy"), "runs/rl.toy"])) == ["step_3.toy", "rl.toy"]


def test_nothing_there_is_an_error_of_its_own_type_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(formats.NoCheckpoint) as caught:
        polarax.open_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no checkpoint there; looked for *.safetensors.index.json and *.safetensors, and for an Orbax "
        "_METADATA in it, its items and steps; there is pytorch_model.bin, but pickle files can run code and are never "
        "opened; convert it to safetensors"
    )
    assert caught.value.note.startswith("there is pytorch_model.bin")


def test_a_damaged_checkpoint_is_not_taken_for_none(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="has only 5 bytes") as caught:
        polarax.open_checkpoint(tmp_path)
    assert not isinstance(caught.value, formats.NoCheckpoint)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.safetensors.index.json", "a"),
        ("a.safetensors", "a"),
        ("a.b.gguf", "a.b"),
        ("a.orbax", "a"),
        ("a.txt", "a.txt"),
    ],
)
def test_endings(name, stem):
    assert formats.stem(name) == stem


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_of_checkpoints_names_them(tmp_path, pickled):
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"w": np.eye(2, dtype=np.float32)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    (tmp_path / "runs").mkdir()
    if pickled:
        (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"name one of them: checkpoint-1000, checkpoint-500") as caught:
        polarax.open_checkpoint(tmp_path)
    assert "runs" not in str(caught.value) and ("pickle" in str(caught.value)) == pickled
