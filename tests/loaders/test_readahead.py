import os
import threading

import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import CheckpointError, ReadAhead, Request, Wanted, open_checkpoint
from polarax.loaders.store import Store

COUNT, ROWS, COLUMNS = 40, 32, 64


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {f"w{i:02}": rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for i in range(COUNT)}


@pytest.fixture
def checkpoint(arrays, save, tmp_path):
    return open_checkpoint(save(tmp_path / "model.safetensors", arrays))


@pytest.fixture
def fills(monkeypatch):
    """Bytes of each scattered read of any store."""
    sizes = []
    fill = Store.fill

    def spy(self, key, start, buffers):
        sizes.append(sum(map(len, buffers)))
        return fill(self, key, start, buffers)

    monkeypatch.setattr(Store, "fill", spy)
    return sizes


def test_a_stack_is_filled_in_place_by_one_read(checkpoint, arrays, fills):
    stack = np.zeros((COUNT, ROWS, COLUMNS), np.float32)
    reads = checkpoint.read_many([Wanted(name, out=out) for name, out in zip(arrays, stack, strict=True)])
    assert all(np.shares_memory(read.result(), stack) for read in reads)
    np.testing.assert_array_equal(stack, np.stack(list(arrays.values())))
    assert fills == [stack.nbytes]


def test_gaps_are_read_along(checkpoint, arrays, fills):
    wanted = [Wanted("w03", slice(0, 30)), Wanted("w04", slice(2, 5)), Wanted("w39"), Wanted("w04", slice(2, 5))]
    reads = checkpoint.read_many(wanted)
    for (name, index, _), read in zip(wanted, reads, strict=True):
        np.testing.assert_array_equal(read.result(), arrays[name][index or slice(None)])
    assert fills == [(ROWS + 5) * COLUMNS * 4]  # w03 and w04 together; the others by themselves


@pytest.mark.parametrize("index", [None, slice(3, 9), slice(None, None, -1), slice(1, 20, 3), slice(4, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reading_into_an_array(checkpoint, arrays, index, order):
    expected = arrays["w07"] if index is None else arrays["w07"][index]
    out = np.full(expected.shape, np.nan, np.float32, order=order)
    assert checkpoint.read_into("w07", out, index).result() is out
    np.testing.assert_array_equal(out, expected)
    tree = open_checkpoint(arrays)
    out[...] = 0
    assert tree.read_into("w07", out, index).result() is out
    np.testing.assert_array_equal(out, expected)


def test_columns_of_a_matrix_into_an_array(checkpoint, arrays):
    out = np.empty((2, 5), np.float32)
    checkpoint.read_into("w07", out, (slice(2, 4), slice(10, 15))).result()
    np.testing.assert_array_equal(out, arrays["w07"][2:4, 10:15])


@pytest.mark.parametrize("out", [np.empty((ROWS, COLUMNS)), np.empty((ROWS, 1), np.float32)])
def test_an_array_that_does_not_fit(checkpoint, arrays, out):
    for source in (checkpoint, open_checkpoint(arrays)):
        with pytest.raises(ValueError, match=r"'w01': out must be float32 of shape \(32, 64\)"):
            source.read_into("w01", out).result()
    frozen = np.empty((ROWS, COLUMNS), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.read_into("w01", frozen)


def test_types_that_numpy_lacks_are_filled_in_place(save, tmp_path):
    array = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    checkpoint = open_checkpoint(save(tmp_path / "b.safetensors", {"w": array, "s": np.array(2, np.float32)}))
    out = np.zeros_like(array)
    checkpoint.read_into("w", out).result()
    np.testing.assert_array_equal(out, array)
    assert checkpoint.read_into("s", np.zeros((), np.float32)).result() == 2


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("budget", [1, ROWS * COLUMNS * 4, 5 * ROWS * COLUMNS * 4, 1 << 30])
def test_arrays_come_in_order_within_the_budget(checkpoint, arrays, budget, reuse):
    tree = open_checkpoint({name: -array for name, array in arrays.items()})
    requests = [Request(source, Wanted(name)) for name in arrays for source in (checkpoint, tree)]
    ahead = ReadAhead(requests, budget, reuse=reuse)
    size, most = ROWS * COLUMNS * 4, 0
    for array in arrays.values():
        np.testing.assert_array_equal(next(ahead), array)
        most = max(most, ahead.held_bytes)
        np.testing.assert_array_equal(next(ahead), -array)
        most = max(most, ahead.held_bytes)
    assert list(ahead) == []
    assert ahead.held_bytes == 0
    assert most <= max(budget, size)
    assert most >= min(budget // size, 2 * COUNT) * size * 3 // 4  # and it is made use of


def test_the_budget_is_read_ahead_and_no_more(checkpoint, arrays, monkeypatch):
    size = ROWS * COLUMNS * 4
    started, lock = [], threading.Lock()
    read = type(checkpoint).read_many

    def spy(self, wanted):
        with lock:
            started.extend(wanted)
        return read(self, wanted)

    monkeypatch.setattr(type(checkpoint), "read_many", spy)
    ahead = ReadAhead([Request(checkpoint, Wanted(name)) for name in arrays], 8 * size)
    assert len(started) == 8
    next(ahead)
    assert len(started) == 8
    for _ in range(2):
        next(ahead)
    assert len(started) == 10  # two are used up: there is room for one more window


def test_memory_is_used_again_if_asked_for(arrays, save, tmp_path):
    arrays = {**arrays, "small": np.ones((3, 3), np.float32), "empty": np.ones((0, 3), np.float32)}
    checkpoint = open_checkpoint(save(tmp_path / "all.safetensors", arrays))
    size = ROWS * COLUMNS * 4
    wanted = [Wanted(name) for name in arrays] + [
        Wanted("w00", slice(3, 5)),
        Wanted("w01", out=np.zeros_like(arrays["w01"])),
    ]
    requests = [Request(checkpoint, item) for item in wanted]
    seen = set()
    for item, array in zip(wanted, ReadAhead(requests, 4 * size, reuse=True), strict=True):
        np.testing.assert_array_equal(array, arrays[item.name][item.slices or slice(None)])
        if item.slices is None and item.out is None and array.nbytes == size:
            seen.add(array.ctypes.data)
    assert len(seen) <= 5
    kept = list(ReadAhead(requests, 4 * size))  # without being asked, never
    for item, array in zip(wanted, kept, strict=True):
        np.testing.assert_array_equal(array, arrays[item.name][item.slices or slice(None)])


def test_a_budget_of_nothing():
    with pytest.raises(ValueError, match="budget_bytes must be positive"):
        ReadAhead([], 0)
    assert list(ReadAhead([], 1)) == []


def test_a_missing_tensor_is_noticed_before_anything_is_read(checkpoint):
    with pytest.raises(CheckpointError, match="has no tensor 'nope'"):
        ReadAhead([Request(checkpoint, Wanted("w00")), Request(checkpoint, Wanted("nope"))], 1 << 20)


@pytest.mark.parametrize("change", ["rewritten", "replaced", "grown", "cut"])
def test_a_file_that_changes_between_reads(checkpoint, arrays, tmp_path, change, save):
    path = tmp_path / "model.safetensors"
    ahead = ReadAhead([Request(checkpoint, Wanted(name)) for name in arrays], 4 * ROWS * COLUMNS * 4)
    next(ahead)
    status = path.stat()
    if change == "rewritten":
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "replaced":  # as by a writer who renames, and keeps the time
        save(tmp_path / "new", arrays)
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").rename(path)
    else:
        os.truncate(path, status.st_size + (1 if change == "grown" else -1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'w\d+': cannot be read: it changed since"):
        list(ahead)
