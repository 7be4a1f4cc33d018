"""The operands of a run: values, order, padding, memory that is used again."""

import jax
import ml_dtypes
import numpy as np
import pytest

import polarax
import polarax.measuring.stack_reads
from polarax.errors import RunError
from polarax.loaders import CheckpointError
from polarax.measuring.stack_reads import StackReads
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    shapes = {"tall": (6, 3), "wide": (3, 6), "square": (5, 5)}
    names = [f"{kind}.{index}" for index in range(5) for kind in shapes]
    return tuple(
        {name: rng.standard_normal(shapes[name.partition(".")[0]]).astype(np.float32) for name in names}
        for _ in range(2)
    )


def plan(base, post, memory_bytes=2**30):
    base, post = polarax.open_checkpoint(base), polarax.open_checkpoint(post)
    return base, post, plan_posts(base, {"": post}, Selection(), memory_bytes=memory_bytes, devices=2).stacks


def as_computed(matrix):
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


@pytest.mark.parametrize("memory_bytes", [1, 2**30])
def test_every_matrix_is_in_its_place(pair, memory_bytes):
    base, post, stacks = plan(*pair, memory_bytes)
    with StackReads(base, post, stacks) as reads:
        seen = []
        for stack, operands in zip(stacks, reads, strict=True):
            for operand, side in zip(operands, pair, strict=True):
                assert operand.shape == (stack.size, *stack.shape)
                for index, matrices in enumerate(stack.pairs):
                    np.testing.assert_array_equal(operand[index], as_computed(side[matrices.name]))
                assert not operand[len(stack.pairs) :].any()
            seen += [matrices.name for matrices in stack.pairs]
    assert sorted(seen) == sorted(pair[0])


def test_matrices_of_a_stacked_tensor(write, tmp_path):
    rng = np.random.default_rng(1)
    shapes = {"gate_up_proj": (3, 8, 4), "down_proj": (3, 4, 4)}
    names = {f"model.layers.0.mlp.experts.{name}": shape for name, shape in shapes.items()}
    sides = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()} for _ in range(2)]
    paths = [write(tmp_path / f"{number}.safetensors", side) for number, side in enumerate(sides)]
    base, post, stacks = plan(*paths)
    with StackReads(base, post, stacks) as reads:
        for stack, operands in zip(stacks, reads, strict=True):
            for operand, side in zip(operands, sides, strict=True):
                for index, pair in enumerate(stack.pairs):
                    half = {"gate": slice(0, 4), "up": slice(4, 8)}.get(pair.role, slice(None))
                    own = side[pair.base.tensor][pair.expert, half]
                    np.testing.assert_array_equal(operand[index], as_computed(own))
    assert sum(len(stack.pairs) for stack in stacks) == 3 * 3


@pytest.mark.parametrize("beside", [1, 5000, 2**26])
def test_scaled_weights_are_decoded_into_their_places(write, tmp_path, monkeypatch, beside):
    monkeypatch.setattr(polarax.measuring.stack_reads, "BESIDE_BYTES", beside)
    rng = np.random.default_rng(2)
    stored, meant = {}, {}
    for index in range(20):
        for name, shape in (("down_proj", (60, 40)), ("up_proj", (40, 60)), ("o_proj", (60, 40))):
            name = f"model.layers.{index}.mlp.{name}.weight"
            stored[name] = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
            meant[name] = stored[name].astype(np.float32)
            if "o_proj" in name:  # of the same shape and dtype as the others, as it is stored
                stored[name] = meant[name]
                continue
            scale = rng.random((shape[0], 1), np.float32)
            stored[name + "_scale"], meant[name] = scale, meant[name] * scale
    post = write(tmp_path / "post.safetensors", meant)
    in_flight, most = 0, 0
    checkpoint = polarax.open_checkpoint(write(tmp_path / "base.safetensors", stored))
    read_many = checkpoint.read_many

    def spy(wanted):
        nonlocal in_flight, most
        sizes = [checkpoint.read_bytes(item) if item.out is not None else 0 for item in wanted]
        reads = read_many(wanted)
        for position, (item, size) in enumerate(zip(wanted, sizes, strict=True)):
            if checkpoint.is_decoded(item.name) and item.out is not None:
                in_flight += size
                most = max(most, in_flight)

                def done(array, size=size):
                    nonlocal in_flight
                    in_flight -= size
                    return array

                reads[position] = reads[position].then(done)
        return reads

    monkeypatch.setattr(checkpoint, "read_many", spy)
    base, post, stacks = plan(checkpoint, post)
    with StackReads(base, post, stacks) as reads:
        for stack, operands in zip(stacks, reads, strict=True):
            for index, pair in enumerate(stack.pairs):
                for operand in operands:
                    np.testing.assert_array_equal(operand[index], as_computed(meant[pair.name]))
    assert in_flight == 0 and most <= max(beside, 60 * 40 + 60 * 4)
    assert most > min(beside, 20 * 2400) / 2  # several at once


def test_two_sets_of_buffers_take_turns(pair):
    squares = tuple({name: matrix for name, matrix in side.items() if "square" in name} for side in pair)
    base, post, stacks = plan(*squares, 1)
    with StackReads(base, post, stacks) as reads:
        places = [tuple(operand.ctypes.data for operand in operands) for operands in reads]
    assert len(places) == 3  # two matrices a stack, for two devices
    assert places[0] == places[2] != places[1]


def test_programs_take_the_operands_without_a_copy(pair):
    base, post, stacks = plan(*pair)
    with StackReads(base, post, stacks) as reads:
        for operands in reads:
            for operand in operands:
                assert jax.device_put(operand).unsafe_buffer_pointer() == operand.ctypes.data


def test_a_read_that_fails_is_an_error_of_the_run(pair, monkeypatch):
    base, post, stacks = plan(*pair)

    def fail(*_):
        raise CheckpointError("post.safetensors: gone")

    monkeypatch.setattr(type(post), "read_many", fail)
    with StackReads(base, post, stacks) as reads, pytest.raises(RunError, match=r"part-way: post.safetensors: gone"):
        list(reads)
