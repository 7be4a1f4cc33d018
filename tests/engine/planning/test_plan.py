"""What a comparison will do, from the headers alone, and that it then does just that."""

import itertools
import os

import ml_dtypes
import numpy as np
import pytest

import polarax
import polarax.comparison
from polarax.loaders.stores.store import Store
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.measurement import Measurement
from polarax.planning.options import Options
from polarax.planning.request import check_request
from polarax.planning.selection import Selection
from polarax.planning.stacks import BESIDE_BYTES, pair_operations


def plan(base, post, *, memory_bytes=2**32, devices=1, lanes=1, draws=0, **selection):
    return plan_posts(
        polarax.open_checkpoint(base),
        {"": polarax.open_checkpoint(post)},
        Selection.parse(**selection),
        Measurement(control_draws=draws),
        memory_bytes=memory_bytes,
        devices=devices,
        lanes=lanes,
    )


@pytest.fixture
def byte_ranges(monkeypatch):
    """Every (file, start, stop) that is asked of a store."""
    ranges = []
    read = Store.read

    def spy(self, key, start=0, stop=None):
        ranges.append((self.path(key), start, stop))
        return read(self, key, start, stop)

    fill = Store.fill

    def spy_on_fill(self, key, start, buffers):
        ranges.append((self.path(key), start, start + sum(map(len, buffers))))
        return fill(self, key, start, buffers)

    monkeypatch.setattr(Store, "read", spy)
    monkeypatch.setattr(Store, "fill", spy_on_fill)
    return ranges


def data_starts(path):
    """The first byte behind the header of a safetensors file."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_headers_alone_are_read(llama, byte_ranges):
    planned = plan(llama.base, llama.post)
    assert planned.matrices == 23
    tensors = [path for path, *_ in byte_ranges if path.endswith(".safetensors")]
    assert len(set(tensors)) == 4  # one base, three shards
    for path, _, stop in byte_ranges:
        if path.endswith(".safetensors"):
            assert stop <= data_starts(path)


def test_a_parameter_tree_is_not_read_either(monkeypatch):
    tree = {"q": np.ones((3, 2))}
    checkpoint = polarax.open_checkpoint(tree)
    monkeypatch.setattr(type(checkpoint), "read", lambda *_: pytest.fail("read"))
    assert plan(checkpoint, checkpoint).matrices == 1


def test_compare_does_what_was_planned(llama, llama_run, byte_ranges, tmp_path, monkeypatch):
    given = {"roles": "q,o,k", "layers": "0-1"}
    planned = plan(llama.base, llama.post, **given)
    del byte_ranges[:]
    # The fingerprint samples pages besides.
    monkeypatch.setattr(polarax.loaders.Checkpoint, "fingerprint", lambda self: "none")
    run = polarax.compare(llama.base, llama.post, metrics="change", progress=False, **given)
    assert run.frame()["name"].tolist() == list(planned.names)
    assert list(run.skipped().itertuples(index=False, name=None)) == list(planned.skipped)
    folders = sorted(path.name for path in (run.path / "arrays").iterdir())
    assert folders == [stack.label for stack in planned.stacks]
    data = [
        stop - start
        for path, start, stop in byte_ranges
        if path.endswith(".safetensors") and start >= data_starts(path)
    ]
    # Neighbours are joined to one read, with what lies between them.
    everything = sum(side.nbytes for pair in llama.matrices.values() for side in pair)
    assert planned.bytes_to_read <= sum(data) < everything
    pairs = [llama.matrices[name] for name in planned.names]
    assert planned.bytes_to_read == sum(base.nbytes + post.nbytes for base, post in pairs)


def test_a_stack_has_one_shape_up_to_transposition_and_one_pair_of_dtypes():
    base = {
        "a": np.ones((4, 3)),
        "b": np.ones((3, 4)),
        "c": np.ones((4, 3), np.float32),
        "d": np.ones((4, 3)),
        "e": np.ones((4, 3)),
    }
    post = base | {"d": np.ones((4, 3), np.float16)}
    planned = plan(base, post)
    by_stack = [[pair.name for pair in stack.pairs] for stack in planned.stacks]
    assert sorted(by_stack) == [["a", "b", "e"], ["c"], ["d"]]
    assert planned.stacks[0].transposed == (False, True, False)
    assert planned.names == tuple("abcde")
    assert [stack.label for stack in planned.stacks] == ["0000-4x3", "0001-4x3", "0002-4x3"]
    assert planned.bytes_to_read == 12 * (16 + 16 + 8 + 10 + 16)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 100])
def test_long_rows_of_matrices_are_split_evenly(count):
    tree = {f"w{i}": np.ones((2, 3)) for i in range(count)}
    planned = plan(tree, tree)
    names = [pair.name for stack in planned.stacks for pair in stack.pairs]
    assert sorted(names) == sorted(tree)
    assert {stack.size for stack in planned.stacks} == {planned.stacks[0].size}  # one program
    assert planned.stacks[0].size <= 32
    padding = sum(stack.size - len(stack.pairs) for stack in planned.stacks)
    assert padding < len(planned.stacks)


class TestMemory:
    # Small and large in turn; 40 of each, so that the stacks of the small ones grow as far as they may.
    SHAPES = [(16, 16), (256, 256), (24, 8), (128, 64), (300, 200), (8, 8)]
    # The largest matrix alone: its work arrays, the pair in the stack at work and in the next one, and once more; a
    # third of the memory is for programs.
    LEAST = (27 * 8 + 3 * 8) * 256 * 256 * 3 // 2 + 1

    @staticmethod
    def tree(shapes):
        return {
            f"{place}.{i}": np.broadcast_to(np.float32(1), shape)
            for place, shape in enumerate(shapes)
            for i in range(40)
        }

    def test_less_memory_means_shorter_stacks(self):
        tree = self.tree(self.SHAPES)
        counts = [len(plan(tree, tree, memory_bytes=budget).stacks) for budget in (1, 2**24, 2**30)]
        assert counts[0] == 240 and counts[2] == 12 and counts[0] > counts[1] > counts[2]

    @pytest.mark.parametrize("lanes", [1, 2, 5])
    def test_the_peak_stays_within_what_is_given(self, lanes):
        tree = self.tree(self.SHAPES)
        for budget in np.linspace(self.LEAST, 3 * self.LEAST, 30, dtype=int):
            assert plan(tree, tree, memory_bytes=int(budget), lanes=lanes).peak_memory <= budget

    def test_lanes_are_as_many_as_memory_allows(self):
        tree = self.tree([(256, 256)])
        seen = []
        for memory in (self.LEAST, 3 * self.LEAST, 100 * self.LEAST):
            stacks = plan(tree, tree, memory_bytes=memory, lanes=5).stacks
            assert all(stack.size % stack.lanes == 0 for stack in stacks)
            seen.append({stack.lanes for stack in stacks})
        assert seen[0] == {1} and seen[2] == {5} and max(seen[1]) in (2, 3)

    def test_the_order_of_the_shapes_does_not_matter(self):
        for order in itertools.permutations(range(4)):
            tree = self.tree([self.SHAPES[place] for place in order])
            assert plan(tree, tree, memory_bytes=self.LEAST).peak_memory <= self.LEAST

    def test_a_matrix_too_large_for_it_is_planned_alone_and_the_peak_says_so(self):
        tree = {"a": np.ones((64, 64)), "b": np.ones((64, 64))}
        planned = plan(tree, tree, memory_bytes=1)
        assert [len(stack.pairs) for stack in planned.stacks] == [1, 1]
        assert planned.peak_memory > 64 * 64 * 8 * 2 * 3

    def test_matrices_too_large_for_it_are_named(self):
        tree = {"small": np.ones((8, 8)), "embed": np.ones((4000, 256)), "head": np.ones((3000, 256))}
        assert plan(tree, tree).warning == ""
        warning = plan(tree, tree, memory_bytes=2**20).warning
        assert warning.startswith("2 of 3 matrices need more than the 0.000977 GiB of memory_gib")
        assert "embed (4000 x 256)" in warning and "\n" not in warning

    def test_the_memory_of_a_run_bounds_its_stacks(self, small, monkeypatch):
        request = check_request(small.base, small.post, Options(dtype="float64", top_k=1, memory_gib=1e-9))
        assert [stack.size for stack in request.plan.stacks] == [1, 1]


def test_stacks_divide_over_devices():
    tree = {f"w{i}": np.ones((2, 3)) for i in range(33)}
    planned = plan(tree, tree, devices=4)
    assert all(stack.size % 4 == 0 for stack in planned.stacks)
    assert sum(len(stack.pairs) for stack in planned.stacks) == 33


@pytest.mark.parametrize(("rows", "cols"), [(7, 3), (3, 7), (5, 5)])
def test_operations_are_those_of_the_formula(rows, cols):
    m, n = max(rows, cols), min(rows, cols)
    svd, values = 6 * m * n**2 + 20 * n**3, 2 * m * n**2 + 2 * n**3
    products = 2 * (2 * m * n**2) + 3 * (2 * n**3)
    assert pair_operations(rows, cols) == 2 * svd + values + products
    tree = {"a": np.ones((rows, cols)), "b": np.ones((rows, cols))}
    assert plan(tree, tree).operations == 2 * pair_operations(rows, cols)


class TestScaledWeights:
    """Weights of one byte with a scale: read as such, four bytes each in memory."""

    @pytest.fixture
    def pair(self):
        name = "model.layers.{}.self_attn.o_proj.weight"
        base, post = {}, {}
        for layer in range(40):
            base[name.format(layer)] = np.broadcast_to(np.zeros((), ml_dtypes.float8_e4m3fn), (2048, 1024))
            base[name.format(layer) + "_scale_inv"] = np.ones((16, 8), np.float32)
            post[name.format(layer)] = np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), (2048, 1024))
        return base, post

    def test_bytes_and_memory(self, pair):
        planned, plain = plan(*pair), plan({k: v.astype(np.float32) for k, v in pair[1].items()}, pair[1])
        assert planned.matrices == 40 and planned.skipped == ()
        assert planned.bytes_to_read == 40 * (2048 * 1024 * (1 + 2) + 16 * 8 * 4)
        assert plain.bytes_to_read == 40 * 2048 * 1024 * (4 + 2)
        stack, as_float32 = planned.stacks[0], plain.stacks[0]
        beside = min(BESIDE_BYTES, 32 * (2048 * 1024 + 512))
        assert stack.bytes_read - beside == stack.size * 2048 * 1024 * (4 + 2)
        assert as_float32.bytes_read == as_float32.size * 2048 * 1024 * (4 + 2)

    @pytest.mark.parametrize("gib", [0.5, 1, 4])
    def test_the_peak_stays_within_what_is_given(self, pair, gib):
        planned = plan(*pair, memory_bytes=int(gib * 2**30))
        assert planned.peak_memory <= gib * 2**30 and not planned.warning


def test_the_plan_of_a_huge_model_takes_no_memory(tmp_path):
    # A header of 2 TB over a file with a hole: reading any of it would show.
    import json

    shape, names = [200_000, 100_000], [f"model.layers.{i}.mlp.up_proj.weight" for i in range(50)]
    size = 2 * shape[0] * shape[1]
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 50 * size)
    planned = plan(str(path), str(path))
    assert planned.bytes_to_read == 2 * 50 * size
    assert planned.matrices == 50 and planned.peak_memory > size
