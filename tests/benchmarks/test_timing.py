"""Races and ratios, by a clock that the contestants themselves turn."""

import pytest

from benchmarks.timing import SETTLE_SECONDS, Contestant, OutOfTime, Ratio, Timing, quartiles, race, ratio


class Clock:
    """A clock on which work takes exactly as long as it says."""

    def __init__(self):
        self.now = 0.0
        self.log = []
        self.slept = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept += seconds

    def work(self, name, seconds):
        """A function that takes the next of these seconds, the last one for ever."""
        left = list(seconds)

        def call():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock():
    return Clock()


def _race(clock, contestants, **arguments):
    return race(contestants, clock=clock, sleep=clock.sleep, **arguments)


def test_compile_first_and_later_runs_are_told_apart(clock):
    slow_start = Contestant("a", clock.work("a", [3.0, 1.0, 2.0, 6.0]), clock.work("build", [9.0]))
    timing = _race(clock, [slow_start], repeats=3)["a"]
    assert timing == Timing(compile=9.0, first=3.0, samples=(1.0, 2.0, 6.0), calls=1)
    assert timing.median == 2.0
    assert timing.spread == pytest.approx((4.0 - 1.5) / 2.0)


def test_nothing_to_compile_is_none(clock):
    assert _race(clock, [Contestant("a", clock.work("a", [1.0]))], repeats=1)["a"].compile is None


def test_contestants_take_turns_in_alternating_order(clock):
    contestants = [Contestant(name, clock.work(name, [1.0])) for name in "ab"]
    _race(clock, contestants, repeats=3)
    assert "".join(clock.log) == "ab" + "ab" + "ba" + "ab"
    assert clock.slept == pytest.approx(8 * SETTLE_SECONDS)  # before each, none while measuring


def test_quick_functions_are_called_many_times_for_a_sample(clock):
    quick = Contestant("quick", clock.work("quick", [0.001]))
    timing = _race(clock, [quick], repeats=2)["quick"]
    assert timing.calls == 10
    assert timing.samples == pytest.approx((0.001, 0.001))
    assert len(clock.log) == 1 + 2 * 10


def test_rounds_stop_when_time_is_up_but_one_is_finished(clock):
    contestants = [Contestant(name, clock.work(name, [5.0])) for name in "ab"]
    timings = _race(clock, contestants, repeats=10, seconds=12.0)
    assert [len(timings[name].samples) for name in "ab"] == [2, 2]
    assert len(_race(clock, contestants, repeats=10, seconds=0.0)["a"].samples) == 1


def test_nothing_is_begun_after_the_limit(clock):
    contestants = [Contestant(name, clock.work(name, [5.0])) for name in "abc"]
    timings = _race(clock, contestants, repeats=10, limit=9.0)
    assert "".join(clock.log) == "ab"
    assert timings["a"].samples == ()
    assert isinstance(timings["c"], OutOfTime)


def test_only_whole_rounds_count(clock):
    contestants = [Contestant(name, clock.work(name, [5.0])) for name in "ab"]
    timings = _race(clock, contestants, repeats=10, limit=26.0)
    assert "".join(clock.log) == "ab" + "ab" + "b"
    assert [len(timings[name].samples) for name in "ab"] == [1, 1]


def test_no_later_call_is_begun_that_would_go_past_the_limit(clock):
    contestants = [Contestant(name, clock.work(name, [5.0])) for name in "ab"]
    assert _race(clock, contestants, repeats=10, limit=24.0)["a"].samples == (5.0,)
    assert clock.now <= 24.0


def test_who_fails_leaves_the_others_alone(clock):
    def broken():
        raise MemoryError("too large")

    timings = _race(clock, [Contestant("broken", broken), Contestant("a", clock.work("a", [1.0]))], repeats=2)
    assert isinstance(timings["broken"], MemoryError)
    assert timings["a"].samples == (1.0, 1.0)


def test_names_must_be_distinct(clock):
    twice = [Contestant("a", clock.work("a", [1.0]))] * 2
    with pytest.raises(ValueError, match="distinct"):
        _race(clock, twice, repeats=1)


def test_ratio_is_taken_within_rounds():
    # The machine is three times slower in the second round; within a round the ratio is always 2.
    assert ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.1]) == Ratio(2.0, 2.0, 2.0)


def test_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="same rounds"):
        ratio([1.0, 2.0], [1.0])


def test_quartiles():
    assert quartiles([4.0]) == (4.0, 4.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
