"""Expected times: what is measured is what NumPy takes too, and what is computed of it is proportional."""

import time

import jax
import numpy as np
import pytest
import threadpoolctl

import polarax
from polarax.errors import UsageError
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.rates import DEVICES, Rates, measure_rates
from polarax.planning.selection import Selection


def stacks_of(shapes):
    checkpoint = polarax.open_checkpoint(
        {f"w{place}": np.broadcast_to(np.float32(1), shape) for place, shape in enumerate(shapes)}
    )
    return plan_posts(checkpoint, {"": checkpoint}, Selection(), memory_bytes=2**30).stacks


def test_seconds_of_a_pair_by_hand():
    # 6 m n^2 + 10 n^3 in products, three eigenproblems of 9 n^3; m = 30, n = 20.
    assert Rates(1.0, float("inf")).seconds(stacks_of([(30, 20)])) == 6 * 30 * 400 + 10 * 8000
    assert Rates(float("inf"), 1.0).seconds(stacks_of([(30, 20)])) == 27 * 8000
    assert Rates(1.0, 1.0).seconds(stacks_of([(20, 30)])) == Rates(1.0, 1.0).seconds(stacks_of([(30, 20)]))


def test_seconds_add_up_and_fall_with_the_rates():
    one, other = stacks_of([(30, 20)] * 3), stacks_of([(7, 5)])
    rates = Rates(3e9, 2e8)
    assert rates.seconds(stacks_of([(30, 20)] * 3 + [(7, 5)])) == pytest.approx(
        rates.seconds(one) + rates.seconds(other)
    )
    assert Rates(6e9, 4e8).seconds(one) == pytest.approx(rates.seconds(one) / 2)


def test_each_eigenproblem_takes_its_time_to_start():
    # Three of a pair: of base, post and change; two more of each further post.
    assert Rates(float("inf"), float("inf"), start=1.0).seconds(stacks_of([(30, 20)] * 5)) == 15


def test_several_devices_are_so_many_times_as_fast():
    stacks = stacks_of([(30, 20)] * 4 + [(7, 5)])
    one = Rates(3e9, 2e8, start=1e-3, compiling=2.0)
    assert one.times(8).seconds(stacks) == pytest.approx(one.seconds(stacks) / 8)
    assert one.times(8).starting_seconds(stacks) == one.starting_seconds(stacks)


def test_programs_are_compiled_for_shapes_and_for_sides():
    rates = Rates(1.0, 1.0, compiling=10.0)
    one = rates.starting_seconds(stacks_of([(30, 20)] * 9))
    assert rates.starting_seconds(stacks_of([(30, 20), (20, 30)])) == one
    assert rates.starting_seconds(stacks_of([(30, 20), (40, 20)])) == one + 10
    assert rates.starting_seconds(stacks_of([(30, 20), (40, 10)])) == one + 20
    assert Rates(1.0, 1.0).starting_seconds(stacks_of([(30, 20)])) == one - 20


@pytest.mark.parametrize(("size", "seconds"), [(1536, 0.064), (2048, 0.090), (4096, 0.380)])
def test_an_h200_takes_what_was_measured_on_one(size, seconds):
    rates = DEVICES["h200"].rates("auto")
    assert rates.seconds(stacks_of([(size, size)])) == pytest.approx(seconds, rel=0.03)
    assert DEVICES["h200"].rates("float32") == DEVICES["h100"].rates("float32")


def test_measured_rates_are_near_those_of_numpy():
    measured = measure_rates()
    x = np.random.default_rng(0).standard_normal((512, 512))
    x += x.T

    def seconds(function):
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
        return min(taken)

    # Another BLAS, another number of threads, another load of the machine: what is off by its unit is far beyond this.
    with threadpoolctl.threadpool_limits(1):
        assert 1 / 50 < measured.products / (2 * 512**3 / seconds(lambda: x @ x)) < 50
        assert 1 / 50 < measured.decompositions / (9 * 512**3 / seconds(lambda: np.linalg.eigh(x))) < 50


def test_measuring_leaves_the_users_settings_alone():
    before = jax.config.jax_enable_x64
    measure_rates()
    assert jax.config.jax_enable_x64 is before is False


@pytest.mark.parametrize("name", DEVICES)
def test_a_named_device(name):
    device = DEVICES[name]
    assert 1 <= device.float32 < 1000 and 1 <= device.memory < 1000
    rates = device.rates("float32")
    assert rates.decompositions < rates.products < device.float32 * 1e12
    assert device.rates("auto") == (rates if device.float64 is None else device.rates("float64"))
    if device.float64 is None:
        with pytest.raises(UsageError, match="float64 was asked for"):
            device.rates("float64")
