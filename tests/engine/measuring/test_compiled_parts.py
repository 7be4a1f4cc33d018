"""The programs of a measurement: which are made, when, and that they give what one program for everything gives."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import polarax
from polarax.measuring import compiled_parts, program_cache
from polarax.measuring.compiled_parts import CompiledParts, PreparedParts
from polarax.measuring.program import measure_in_parts, measure_stack
from polarax.planning.measurement import Measurement

FULL = Measurement()


@pytest.fixture
def made(monkeypatch):
    """Names of the parts that programs were made of, as a list that grows."""
    names = []
    real = compiled_parts.load_or_compile

    def counted(*arguments, static, **how):
        names.append(static["part"])
        return real(*arguments, static=static, **how)

    monkeypatch.setattr(compiled_parts, "load_or_compile", counted)
    return names


def planted(rows, cols, *, seed):
    """A stack of one matrix with singular values over three decades."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, cols)))[0] for side in (rows, cols))
    values = np.geomspace(1, 1e-3, cols)
    return ((left * values) @ right.T)[None].astype(np.float32)


def near(base, *, seed, by=0.02):
    rng = np.random.default_rng(seed)
    return base + (by * base.std() * rng.normal(size=base.shape)).astype(np.float32)


def measured(run, base, *posts, measurement=FULL, keys=(), pairs=()):
    with jax.enable_x64(True):
        return jax.device_get(measure_in_parts(run, base, posts, *keys, measurement=measurement, pairs=pairs))


def in_one_program(base, *posts, measurement=FULL, keys=(), pairs=()):
    with jax.enable_x64(True):
        readings = measure_stack(base, posts, *keys, measurement=measurement, pairs=pairs, batched=False)
        return jax.device_get(readings)


def assert_same(found, expected, *, rtol):
    assert len(found.posts) == len(expected.posts) and len(found.pairs) == len(expected.pairs)
    for one, another in zip((*found.posts, *found.pairs), (*expected.posts, *expected.pairs), strict=True):
        assert one.keys() == another.keys()
        for name, values in another.items():
            scale = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1
            np.testing.assert_allclose(one[name], values, rtol=rtol, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("draws", [0, 2])
def test_the_parts_give_what_one_program_gives(draws):
    base = planted(40, 24, seed=1)
    measurement = Measurement(("rotation", "fit"), control_draws=draws) if draws else FULL
    given = {"measurement": measurement, "keys": [np.array([[3, 4]], np.uint32)] * bool(draws)}
    post = near(base, seed=2)
    found = measured(CompiledParts(None, None), base, post, **given)
    assert_same(found, in_one_program(base, post, **given), rtol=1e-9)


def test_posts_and_each_two_of_them():
    base = planted(40, 24, seed=3)
    posts, pairs = [near(base, seed=seed) for seed in (4, 5)], ((0, 1),)
    given = {"measurement": Measurement(("scaling", "rotation", "change")), "pairs": pairs}
    found = measured(CompiledParts(None, None), base, *posts, **given)
    assert_same(found, in_one_program(base, *posts, **given), rtol=1e-9)


def test_spectra_alone_need_no_frames(made):
    base, measurement = planted(40, 24, seed=3), Measurement(("scaling",))
    post = near(base, seed=4)
    found = measured(CompiledParts(None, None), base, post, measurement=measurement)
    assert made == ["values_alone", "controls_of_values", "controls_of_pair", "read_frames", "read_stored"]
    assert_same(found, in_one_program(base, post, measurement=measurement), rtol=1e-9)


def test_what_is_prepared_is_all_that_a_well_conditioned_pair_takes(made):
    base = planted(40, 24, seed=1)
    parts = CompiledParts(None, None)
    stack = jax.ShapeDtypeStruct(base.shape, base.dtype)
    with PreparedParts(parts) as prepared:
        described = measure_in_parts_of(prepared, stack)
    controls = [f"controls_of_{which}" for which in ("change", "leading", "pair", "values")]
    assert sorted(made) == [*controls, "decompose_pair", "read_frames", "read_stored"]
    found = measured(parts, base, near(base, seed=2))
    assert len(made) == 7
    shapes = jax.tree.map(
        lambda x: (x.shape, x.dtype), (described.posts, found.posts), is_leaf=lambda x: hasattr(x, "shape")
    )
    assert shapes[0] == shapes[1]


def measure_in_parts_of(run, stack):
    with jax.enable_x64(True):
        return measure_in_parts(run, stack, (stack,), measurement=FULL)


def test_another_shape_takes_no_other_program_for_what_follows_the_frames(made):
    parts = CompiledParts(None, None)
    few = Measurement(("scaling", "budget", "leading", "shape"))
    for rows in (24, 57):
        base = planted(rows, 24, seed=rows)
        post = near(base, seed=2)
        found = measured(parts, base, post, measurement=few)
    assert_same(found, in_one_program(base, post, measurement=few), rtol=1e-9)
    assert made.count("read_frames") == 1
    assert made.count("decompose_pair") == 2


def test_lapack_is_compiled_when_a_matrix_needs_it(made):
    parts = CompiledParts(None, None)
    whole, lower = planted(40, 24, seed=1), planted(40, 24, seed=2)
    lower[..., -1] = 0
    measured(parts, whole, near(whole, seed=3))
    assert "pair_by_fallback" not in made
    lower_post = (1.01 * lower).astype(np.float32)
    found = measured(parts, lower, lower_post)
    assert made.count("pair_by_fallback") == 1
    assert found.posts[0]["rank_base"] == np.linalg.matrix_rank(lower[0]) == 23
    np.testing.assert_allclose(found.posts[0]["alpha"], 1.01, rtol=1e-6)
    measured(parts, lower, lower_post)
    assert made.count("pair_by_fallback") == 1


def test_several_threads_make_a_program_once(made):
    base = planted(40, 24, seed=1)
    post, parts = near(base, seed=2), CompiledParts(None, None)
    with ThreadPoolExecutor(3) as pool:
        readings = list(pool.map(lambda _: measured(parts, base, post), range(3)))
    assert sorted(made) == sorted(set(made))
    for one in readings[1:]:
        assert_same(one, readings[0], rtol=0)


def test_a_seed_is_no_reason_for_another_program(made):
    base = planted(40, 24, seed=1)
    post, parts, keys = near(base, seed=2), CompiledParts(None, None), [np.array([[1, 2]], np.uint32)]
    for seed in (0, 1):
        given = {"measurement": Measurement(("rotation",), control_draws=1, seed=seed), "keys": keys}
        measured(parts, base, post, **given)
    assert sorted(made) == sorted(set(made))


def test_the_next_comparison_in_this_process_makes_no_program(monkeypatch):
    """Though no file keeps any."""
    compiled, compile_ = [], program_cache._compiled
    monkeypatch.setattr(program_cache, "_compiled", lambda *given: compiled.append(given) or compile_(*given))
    monkeypatch.setattr(program_cache, "_folder", lambda: None)
    monkeypatch.setattr(program_cache, "_recent", program_cache._RecentPrograms())
    base = {"w": planted(40, 24, seed=1)[0]}
    post = {"w": near(base["w"], seed=2)}
    first = polarax.compare(base, post, metrics="change,scaling", progress=False).frame()
    assert compiled
    compiled.clear()
    again = polarax.compare(base, post, metrics="change,scaling", progress=False).frame()
    assert not compiled
    assert first.equals(again)
