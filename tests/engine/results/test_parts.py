"""What processes find is kept whole and read back as it was, whoever found it and however it was cut."""

import numpy as np
import pytest

from polarax.errors import RunError
from polarax.planning.stacks import Stack
from polarax.results.parts import Found, Parts
from polarax.results.shelf import Shelf


def piece(number, start):
    return Stack(number, (), 1, start=start)._replace(pairs=(_Shaped(),))


class _Shaped:
    shape = (8, 4)


def found(names, rng):
    rows = [{"name": name, "alpha": repr(float(rng.normal())), "status": ""} for name in names]
    arrays = {
        "s_base": rng.normal(size=(len(names), 4)),
        "overlaps": rng.normal(size=(len(names), 2, 3)).astype(np.float32),
        "counts": rng.integers(0, 9, size=(len(names), 5)),
    }
    return Found(rows, arrays)


def test_pieces_of_several_processes_are_put_together_in_the_order_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    first, second, other = found(["a", "b"], rng), found(["c"], rng), found(["a", "b"], rng)
    Parts(Shelf.open(tmp_path), 0).put(piece(0, 0), {"": first, "between/x/y": other})
    Parts(Shelf.open(tmp_path), 3).put(piece(0, 2), {"": second})
    parts = Parts(Shelf.open(tmp_path), 0)
    parts.look()
    assert parts.any and parts.has("", "c") and not parts.has("between/x/y", "c")
    together = parts.of("", ["c", "a", "b"])
    assert together.rows == [*second.rows, *first.rows]
    for name, values in together.arrays.items():
        expected = np.concatenate([second.arrays[name], first.arrays[name]])
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(parts.of("between/x/y", ["b"]).arrays["s_base"], other.arrays["s_base"][1:])


def test_what_was_joined_is_removed(tmp_path):
    parts = Parts(Shelf.open(tmp_path), 1)
    parts.put(piece(2, 0), {"": found(["a"], np.random.default_rng(1))})
    parts.clear()
    parts.look()
    assert not parts.any and not (tmp_path / "parts").exists()


def test_a_file_that_is_none_of_them_is_named(tmp_path):
    parts = Parts(Shelf.open(tmp_path), 0)
    parts.put(piece(0, 0), {"": found(["a"], np.random.default_rng(2))})
    file = next((tmp_path / "parts").rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"0/0000-8x4\+0.npz is not a part of a run"):
        parts.look()
