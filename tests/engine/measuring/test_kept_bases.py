"""Bases that are kept decomposed: found by their bytes alone, never when anything is another, never when torn."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import polarax
from polarax.errors import UsageError
from polarax.measuring import kept_bases
from polarax.measuring.compiled_parts import CompiledParts
from polarax.measuring.kept_bases import Form, KeptBases, form_of, kept_bytes, kept_line, kept_shapes
from polarax.planning.measurement import Measurement
from polarax.planning.options import Options
from polarax.planning.request import check_request

FORM = Form("gram", "float64", "polarax 1, jax 2")
SHAPES = kept_shapes(4)


@pytest.fixture
def kept(tmp_path):
    return KeptBases(tmp_path / "bases", FORM)


def _matrix(dtype=ml_dtypes.bfloat16):
    return np.random.default_rng(0).standard_normal((6, 4)).astype(dtype)


def _arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {kind: rng.standard_normal(shape) for kind, shape in SHAPES.items()}


def _assert_same(found, arrays):
    assert found is not None
    assert {*found} == {*arrays}
    for kind, values in arrays.items():
        np.testing.assert_array_equal(found[kind], values)
        assert found[kind].shape == np.shape(values)


def test_what_was_written_is_read(kept):
    name = kept.name_of(_matrix())
    assert kept.read(name, SHAPES) is None
    kept.write(name, _arrays())
    _assert_same(kept.read(name, SHAPES), _arrays())


def test_a_copy_of_the_matrix_is_the_same_base(kept):
    transposed = np.asfortranarray(_matrix())
    assert kept.name_of(_matrix()) == kept.name_of(transposed)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(_matrix()[::-1], id="bytes"),
        pytest.param(_matrix().reshape(4, 6), id="shape"),
        pytest.param(_matrix().view(np.float16), id="dtype of the same bytes"),
        pytest.param(_matrix().astype(np.float32), id="dtype of the same values"),
    ],
)
def test_another_matrix_is_another_base(kept, other):
    assert kept.name_of(other) != kept.name_of(_matrix())


def test_one_bit_is_enough(kept):
    changed = _matrix()
    changed.view(np.uint16)[3, 2] ^= 1
    assert kept.name_of(changed) != kept.name_of(_matrix())


@pytest.mark.parametrize(
    "form", [FORM._replace(method="lapack"), FORM._replace(dtype="float32"), FORM._replace(versions="polarax 2, jax 2")]
)
def test_another_method_dtype_or_version_is_not_read(tmp_path, kept, form):
    kept.write(kept.name_of(_matrix()), _arrays())
    other = KeptBases(tmp_path / "bases", form)
    assert other.read(other.name_of(_matrix()), SHAPES) is None


def test_a_change_of_the_source_is_another_version(monkeypatch):
    measurement = Measurement(method="gram")
    form = form_of(measurement)
    assert form is not None
    assert form[:2] == ("gram", "float64")
    monkeypatch.setattr(kept_bases, "source_digest", lambda: "another")
    assert form_of(measurement) != form
    monkeypatch.setattr(kept_bases, "source_digest", lambda: None)
    assert form_of(measurement) is None


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[:-1], id="cut"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="half"),
        pytest.param(lambda whole: whole + b"x", id="longer"),
        pytest.param(lambda whole: whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:], id="one bit"),
        pytest.param(lambda whole: b"x" + whole[1:], id="another format"),
        pytest.param(lambda whole: whole[:15] + b"\xff" * 8 + whole[23:], id="length of the header"),
        pytest.param(lambda whole: whole[:23] + b"\xff" + whole[24:], id="header"),
    ],
)
def test_a_torn_or_broken_file_is_not_read(tmp_path, kept, spoil):
    name = kept.name_of(_matrix())
    kept.write(name, _arrays())
    path = tmp_path / "bases" / name
    path.write_bytes(spoil(path.read_bytes()))
    assert kept.read(name, SHAPES) is None
    kept.write(name, _arrays(1))
    _assert_same(kept.read(name, SHAPES), _arrays(1))


def test_a_file_under_another_name_is_not_read(tmp_path, kept):
    first, second = kept.name_of(_matrix()), kept.name_of(2 * _matrix())
    kept.write(first, _arrays())
    os.rename(tmp_path / "bases" / first, tmp_path / "bases" / second)
    assert kept.read(second, SHAPES) is None


def test_other_shapes_are_not_read(kept):
    name = kept.name_of(_matrix())
    kept.write(name, _arrays())
    assert kept.read(name, kept_shapes(5)) is None
    assert kept.read(name, {"values": (4,)}) is None


def test_a_write_that_fails_leaves_what_was_there(tmp_path, kept, monkeypatch):
    name = kept.name_of(_matrix())
    kept.write(name, _arrays())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        kept.write(name, _arrays(1))
    _assert_same(kept.read(name, SHAPES), _arrays())
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [name]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    kept = KeptBases(tmp_path / "file" / "bases", FORM)
    assert kept.read("x", SHAPES) is None
    with pytest.raises(UsageError, match="cannot be kept"):
        kept.write("x", _arrays())


def test_what_was_abandoned_goes(tmp_path, kept):
    (tmp_path / "bases").mkdir()
    old, new = (tmp_path / "bases" / f"{name}{kept_bases.PARTIAL}" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    kept.write(kept.name_of(_matrix()), _arrays())
    assert (old.exists(), new.exists()) == (False, True)


_WRITER = """
import pathlib, sys
import numpy as np
from polarax.measuring.kept_bases import Form, KeptBases, kept_shapes
kept = KeptBases(pathlib.Path(sys.argv[1]), Form("gram", "float64", "polarax 1, jax 2"))
rng = np.random.default_rng(int(sys.argv[3]))
arrays = {kind: rng.standard_normal(shape) for kind, shape in kept_shapes(4).items()}
for _ in range(50):
    kept.write(sys.argv[2], arrays)
"""


def test_two_processes_at_once(tmp_path, kept):
    """Whatever is read meanwhile is whole, one's or the other's."""
    name = "same" + kept_bases.ENDING
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "bases"), name]
    writers = [subprocess.Popen([*command, str(seed)]) for seed in (0, 1)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        found = kept.read(name, SHAPES)
        if found is not None:
            seen += 1
            assert any(np.array_equal(found["gram"], _arrays(seed)["gram"]) for seed in (0, 1))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen
    assert len(list((tmp_path / "bases").iterdir())) == 1


def _pair():
    """Checkpoints with a matrix that is decomposed in one pass, a wide one, one of lower rank and a float64 one."""
    rng = np.random.default_rng(1)
    base = {f"layers.{i}.weight": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate([(9, 6), (6, 9)])}
    base["layers.2.weight"] = np.outer(np.arange(1.0, 8), np.arange(1.0, 5)).astype(np.float32)
    base["layers.3.weight"] = rng.normal(size=(8, 5))
    posts = [
        {name: (w + 0.01 * rng.normal(size=w.shape)).astype(w.dtype) for name, w in base.items()} for _ in range(2)
    ]
    return base, posts


@pytest.fixture
def decomposed(monkeypatch):
    """How often a base was decomposed, as a list that grows."""
    calls = []
    real = CompiledParts.__call__

    def counted(self, part, *stacks, **given):
        if part.__name__ in ("decompose_pair", "begin"):
            calls.append(stacks[0].shape)
        return real(self, part, *stacks, **given)

    monkeypatch.setattr(CompiledParts, "__call__", counted)
    return calls


def _compare(base, post, folder=None, **given):
    given = {"metrics": "rotation,budget"} | given
    return polarax.compare(base, post, keep_base=folder, progress=False, **given).frame()


def _assert_same_rows(found, expected):
    for column in expected:
        if expected[column].dtype.kind == "f":
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, atol=1e-12, err_msg=column)
        else:
            assert (found[column] == expected[column]).all(), column


def test_the_next_comparison_decomposes_no_base(tmp_path, decomposed):
    base, (post, other) = _pair()
    folder = tmp_path / "bases"
    expected = _compare(base, post)
    decomposed.clear()
    _assert_same_rows(_compare(base, post, folder), expected)
    assert len(decomposed) == 4
    assert len(list(folder.iterdir())) == 3  # float64 weights are not kept
    decomposed.clear()
    _assert_same_rows(_compare(base, post, folder), expected)
    assert decomposed == [(1, 8, 5)]
    expected = _compare(base, other)
    decomposed.clear()
    _assert_same_rows(_compare(base, other, folder), expected)
    assert decomposed == [(1, 8, 5)]


def test_several_posts_and_draws_from_what_one_kept(tmp_path, decomposed):
    base, posts = _pair()
    base, *posts = ({"w": x["layers.0.weight"]} for x in (base, *posts))
    folder, given = tmp_path / "bases", {"metrics": "rotation,change", "control_draws": 1}
    _compare(base, posts[0], folder, metrics="rotation")
    decomposed.clear()
    labelled = {label: polarax.open_checkpoint(post) for label, post in zip("ab", posts, strict=True)}
    runs = polarax.compare(base, labelled, keep_base=folder, progress=False, **given)
    assert not decomposed
    expected = polarax.compare(base, labelled, progress=False, **given)
    for label in labelled:
        _assert_same_rows(runs[label].frame(), expected[label].frame())


def test_a_broken_file_is_made_again(tmp_path, decomposed):
    base, (post, _) = _pair()
    folder = tmp_path / "bases"
    expected = _compare(base, post, folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    for count in (4, 1):
        decomposed.clear()
        _assert_same_rows(_compare(base, post, folder), expected)
        assert len(decomposed) == count


def test_what_is_not_finite_is_not_kept(tmp_path):
    base, (post, _) = _pair()
    base["layers.0.weight"][2, 3] = np.nan
    frame = _compare(base, post, tmp_path / "bases")
    assert "not finite" in frame.set_index("name").loc["layers.0.weight", "status"]
    assert len(list((tmp_path / "bases").iterdir())) == 2


@pytest.mark.parametrize("given", [{"quick": True, "metrics": None}, {"method": "lapack"}, {"metrics": "scaling"}])
def test_where_there_is_nothing_to_keep(tmp_path, given):
    base, (post, _) = _pair()
    with pytest.raises(UsageError, match="keep_base has nothing to keep"):
        _compare(base, post, tmp_path / "bases", **given)


def test_the_size_that_is_said_is_the_size_of_the_files(tmp_path):
    base, (post, _) = _pair()
    _compare(base, post, tmp_path / "bases")
    request = check_request(base, post, Options(keep_base=tmp_path / "bases"))
    said, sizes = kept_bytes(request.plan.stacks), [file.stat().st_size for file in (tmp_path / "bases").iterdir()]
    assert said <= sum(sizes) <= said + 300 * len(sizes)  # their headers
    assert f"{said / 2**20:.1f} MiB" in kept_line(request.plan.stacks, request.keep_base)
