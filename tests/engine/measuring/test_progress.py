"""Progress: a bar on a terminal, a line now and then elsewhere, nothing when told so."""

import io
import re
from typing import NamedTuple

import pytest

import polarax
import polarax.measuring.progress
from polarax.measuring.progress import Progress


class Work(NamedTuple):
    """What progress looks at in a stack."""

    pairs: range
    operations: float
    bytes_stored: int


def work(matrices, operations, stored=0):
    return Work(range(matrices), operations, stored)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(polarax.measuring.progress, "time", clock)
    return clock


def test_a_terminal_gets_a_bar_with_matrices_time_left_and_rate():
    stream = Terminal()
    with Progress([work(4, 8e9)], stream) as progress:
        progress._bar.mininterval = 0  # draw every time
        progress.advance(work(1, 2e9), 0, 0.5)
        drawn = stream.getvalue().split("\r")[-1]
        assert "25%" in drawn and "1/4" in drawn and "4.0 GFLOP/s" in drawn
        assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", drawn)  # gone < left
        progress.advance(work(3, 6e9), 0, 0.5)
    last = stream.getvalue().split("\r")[-1]
    assert "100%" in last and "4/4" in last and "8.0 GFLOP/s" in last


def test_another_stream_gets_a_line_now_and_then(clock):
    stream = io.StringIO()
    with Progress([work(8, 8e9)], stream) as progress:
        clock.now += 10
        progress.advance(work(1, 1e9), 0, 5)
        assert stream.getvalue() == ""  # too soon
        clock.now += 6
        progress.advance(work(1, 1e9), 0, 5)
        assert (
            stream.getvalue() == "2/8 matrices, 16 s, about 48 s left, 0.2 GFLOP/s, 0.0 MB/s read, bound by computing\n"
        )
        clock.now += 14
        progress.advance(work(1, 1e9), 0, 1)
        assert stream.getvalue().count("\n") == 1
        clock.now += 2
        progress.advance(work(1, 1e9), 0, 1)
        assert stream.getvalue().splitlines()[1].startswith("4/8 matrices, 32 s, about 32 s left, 0.3 GFLOP/s")
        progress.advance(work(4, 4e9), 0, 4)
    *_, last = stream.getvalue().splitlines()
    assert last.startswith("8/8 matrices, 32 s, about 0 s left, 0.5 GFLOP/s")


def test_the_read_rate_and_what_bounds_the_run(clock):
    stream = io.StringIO()
    with Progress([work(2, 4e9, 64_000_000)], stream) as progress:
        clock.now += 16
        progress.advance(work(1, 2e9, 32_000_000), 3, 2)
        clock.now += 16
        progress.advance(work(1, 2e9, 32_000_000), 0, 2)
    first, last = stream.getvalue().splitlines()
    assert first.endswith("2.0 MB/s read, bound by reading")
    assert last.endswith("2.0 MB/s read, bound by computing")


def test_time_left_goes_by_operations_not_by_matrices(clock):
    stream = io.StringIO()
    with Progress([work(2, 100e9)], stream) as progress:
        clock.now += 20
        progress.advance(work(1, 10e9), 0, 1)
    assert "1/2 matrices, 20 s, about 180 s left" in stream.getvalue()


def test_the_rate_is_of_the_time_in_which_stacks_were_computed(clock):
    """Not of the time that was waited for them: what was computed while the next program was made took time too."""
    stream = io.StringIO()
    with Progress([work(2, 100e9)], stream) as progress:
        clock.now += 20
        progress.advance(work(1, 10e9), 0, 0.01, 5)
    assert "s left, 2.0 GFLOP/s" in stream.getvalue()


def test_programs_made_before_the_first_stack_are_not_in_the_time_left(clock):
    stream = io.StringIO()
    with Progress([work(2, 100e9)], stream) as progress:
        clock.now += 50
        progress.advance(work(1, 2e9), 0.5, 0, 0.5)
    assert "1/2 matrices, 50 s, about 49 s left, 4.0 GFLOP/s" in stream.getvalue()


def test_of_a_small_first_stack_no_time_is_told(clock):
    stream = io.StringIO()
    with Progress([work(3, 100e9)], stream) as progress:
        clock.now += 20
        progress.advance(work(1, 0.9e9), 0, 1)
        clock.now += 20
        progress.advance(work(1, 0.1e9), 0, 1)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("1/3 matrices, 20 s, no time known yet, 0.9 GFLOP/s")
    assert second.startswith("2/3 matrices, 40 s, about 3960 s left, 0.5 GFLOP/s")


def test_a_run_that_stops_early_says_nothing_of_its_end(clock):
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress([work(2, 1.0)], stream) as progress:
        progress.advance(work(1, 0.5), 0, 1)
        raise KeyError
    assert stream.getvalue() == ""


def test_a_bar_is_closed_when_a_run_stops_early():
    stream = Terminal()
    with pytest.raises(KeyError), Progress([work(2, 1.0)], stream) as progress:
        progress.advance(work(1, 0.5), 0, 1)
        raise KeyError
    assert stream.getvalue().endswith("\n")


def test_no_stream_gets_nothing(capfd):
    with Progress([work(2, 1.0)], None) as progress:
        progress.advance(work(2, 1.0), 0, 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_compare_shows_progress_on_standard_error_unless_told_not_to(small, capfd, shown):
    polarax.compare(small.base, small.post, metrics="change", progress=shown)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == shown
    if shown:
        assert re.fullmatch(
            r"2/2 matrices, \d+ s, about 0 s left, [\d.]+ GFLOP/s, [\d.]+ MB/s read, bound by \w+\n", err
        )
