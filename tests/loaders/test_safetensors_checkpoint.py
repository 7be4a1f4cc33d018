import asyncio
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polarax.loaders import CheckpointError, open_checkpoint
from polarax.loaders.stores.store import Store


def random_array(dtype, shape, seed=0):
    """An array of random bits, among them NaN, Inf and negative zeros."""
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    bits = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    if dtype == np.bool_:
        bits &= 1
    return bits.view(dtype).reshape(shape)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def reference(path):
    """Dtype, shape and bytes of every tensor, read by the reference library."""
    return {
        name: (item["dtype"], tuple(item["shape"]), bytes(item["data"]))
        for name, item in safetensors.deserialize(path.read_bytes())
    }


@pytest.fixture
def every_dtype(dtypes, save, tmp_path):
    arrays = {}
    for seed, (spelling, dtype) in enumerate(dtypes.items()):
        for shape in [(), (3,), (5, 4), (2, 3, 2), (0, 4)]:
            arrays[f"{spelling}.{len(shape)}.{0 in shape}"] = random_array(dtype, shape, seed)
    return save(tmp_path / "model.safetensors", arrays)


def test_every_dtype_reads_as_the_reference_reads_it(every_dtype, dtypes):
    checkpoint = open_checkpoint(every_dtype)
    expected = reference(every_dtype)
    assert set(checkpoint.names()) == set(expected)
    assert checkpoint.format == "safetensors"
    assert checkpoint.location == str(every_dtype)
    for name, (spelling, shape, data) in expected.items():
        array = checkpoint.read(name).result()
        assert array.dtype == checkpoint.dtype(name) == dtypes[spelling]
        assert array.shape == checkpoint.shape(name) == shape
        assert checkpoint.nbytes(name) == len(data)
        assert bits(array) == data


def test_names_are_in_file_order(every_dtype):
    data = every_dtype.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    names = open_checkpoint(every_dtype).names()
    starts = [header[name]["data_offsets"][0] for name in names]
    assert starts == sorted(starts)


def test_dtype_names_are_those_of_numpy(every_dtype):
    checkpoint = open_checkpoint(every_dtype)
    assert checkpoint.dtype_name("BF16.2.False") == "bfloat16"
    assert checkpoint.dtype_name("F8_E4M3.2.False") == "float8_e4m3fn"
    assert checkpoint.dtype_name("I64.0.False") == "int64"


def test_slices_mean_what_they_mean_in_numpy(every_dtype):
    checkpoint = open_checkpoint(every_dtype)
    for name in ("F32.2.False", "BF16.2.False", "F8_E5M2.2.False", "F16.3.False"):
        whole = checkpoint.read(name).result()
        for index in (slice(1, 3), slice(None, None, -2), slice(9, 2), (slice(-2, None), slice(2))):
            assert bits(checkpoint.read(name, index).result()) == bits(whole[index])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int8, ml_dtypes.bfloat16]).map(np.dtype),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            elements=st.sampled_from([0, 1, 3]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_was_saved_is_read(save, tmp_path, arrays):
    checkpoint = open_checkpoint(save(tmp_path / "a.safetensors", arrays))
    assert set(checkpoint.names()) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(name).result(), array)


def test_many_reads_in_flight(save, tmp_path):
    arrays = {f"w{i}": random_array(np.dtype(np.float32), (64, 64), i) for i in range(300)}
    checkpoint = open_checkpoint(save(tmp_path / "model.safetensors", arrays))

    async def read_all():
        return await asyncio.gather(*(wait(name) for name in arrays))

    async def wait(name):
        return await asyncio.to_thread(checkpoint.read(name).result)

    for array, expected in zip(asyncio.run(read_all()), arrays.values(), strict=True):
        assert bits(array) == bits(expected)
    reads = {name: checkpoint.read(name, slice(3, 5)) for name in arrays}
    for name, read in reads.items():
        assert bits(read.result(timeout=30)) == bits(arrays[name][3:5])


@pytest.fixture
def byte_ranges(monkeypatch):
    """The (file, start, stop) that are read from any store while a test runs."""
    ranges = []
    read, read_head, fill = Store.read, Store.read_head, Store.fill

    def spy(self, key, start=0, stop=None):
        ranges.append((key, start, stop))
        return read(self, key, start, stop)

    def spy_head(self, key, count):
        ranges.append((key, 0, count))
        return read_head(self, key, count)

    def spy_fill(self, key, start, buffers):
        ranges.append((key, start, start + sum(map(len, buffers))))
        return fill(self, key, start, buffers)

    monkeypatch.setattr(Store, "read", spy)
    monkeypatch.setattr(Store, "read_head", spy_head)
    monkeypatch.setattr(Store, "fill", spy_fill)
    return ranges


def test_opening_reads_headers_alone(every_dtype, byte_ranges):
    open_checkpoint(every_dtype)
    length = int.from_bytes(every_dtype.read_bytes()[:8], "little")
    assert byte_ranges == [("model.safetensors", 0, 8), ("model.safetensors", 8, 8 + length)]


def test_a_slice_reads_its_own_rows_alone(save, tmp_path, byte_ranges):
    path = save(tmp_path / "model.safetensors", {"w": np.zeros((100, 8), np.float32)})
    checkpoint = open_checkpoint(path)
    data_start = path.stat().st_size - 100 * 8 * 4
    byte_ranges.clear()
    checkpoint.read("w", slice(10, 13)).result()
    checkpoint.read("w", (slice(99, None), slice(2, 4))).result()
    rows = [(start - data_start, stop - data_start) for _, start, stop in byte_ranges]
    assert rows == [(10 * 32, 13 * 32), (99 * 32 + 8, 99 * 32 + 16)]


def test_a_type_that_numpy_lacks_is_listed_but_not_read(save_raw, tmp_path):
    header = {
        "four": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]},
        "new": {"dtype": "Q7", "shape": [2, 2], "data_offsets": [4, 5]},
    }
    path = save_raw(tmp_path / "m.safetensors", header, bytes(5))
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == ("four", "new")
    assert checkpoint.dtype("four") is checkpoint.dtype("new") is None
    assert [checkpoint.dtype_name(name) for name in checkpoint.names()] == ["F4", "Q7"]
    assert checkpoint.nbytes("new") == 1
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'four' is stored as F4"):
        checkpoint.read("four")
    assert checkpoint.fingerprint()


def test_a_name_that_is_not_there(every_dtype):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has no tensor 'nope'"):
        open_checkpoint(every_dtype).read("nope")


def test_a_truncated_file_is_refused_before_any_data_is_read(save, tmp_path, byte_ranges):
    path = save(tmp_path / "model.safetensors", {"w": np.zeros((4, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'w' .* truncated"):
        open_checkpoint(path)
    assert [start for _, start, _ in byte_ranges] == [0, 8]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40])
def test_a_file_cut_anywhere_is_refused(save, tmp_path, keep):
    path = save(tmp_path / "model.safetensors", {"w": np.zeros((4, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_checkpoint(path)


def test_a_length_beyond_the_file_is_refused_before_it_is_read(save_raw, tmp_path, byte_ranges):
    path = save_raw(tmp_path / "m.safetensors", b"{}", length=90_000_000)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: is truncated: its header ends at"):
        open_checkpoint(path)
    assert byte_ranges == [("m.safetensors", 0, 8)]


@pytest.mark.parametrize("replace_by", [b"short", None])
def test_a_file_that_changes_after_it_was_opened(save, tmp_path, replace_by):
    path = save(tmp_path / "model.safetensors", {"w": np.zeros((4, 4), np.float32)})
    checkpoint = open_checkpoint(path)
    path.unlink()
    if replace_by is not None:
        path.write_bytes(replace_by)

    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'w'"):
        checkpoint.read("w").result()
