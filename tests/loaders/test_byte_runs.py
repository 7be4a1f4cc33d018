from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders.byte_runs import ByteRun, Extent, plan_byte_runs

extents = st.lists(
    st.builds(
        lambda file, start, size: Extent(file, start, start + size),
        st.sampled_from("fg"),
        st.integers(0, 60),
        st.integers(0, 20),
    ),
    max_size=12,
)


@given(extents, st.integers(0, 10), st.integers(1, 40))
def test_every_byte_is_read_by_the_run_of_its_extent(wanted, gap, most):
    runs = plan_byte_runs(wanted, gap, most)
    planned = [index for run in runs for index in run.parts]
    assert sorted(planned) == [i for i, extent in enumerate(wanted) if extent.stop > extent.start]
    for run in runs:
        parts = [wanted[index] for index in run.parts]
        assert {part.file for part in parts} == {run.file}
        assert (parts[0].start, parts[-1].stop) == (run.start, run.stop)
        gaps = [after.start - before.stop for before, after in zip(parts, parts[1:], strict=False)]
        assert all(0 <= size <= gap for size in gaps)
        assert len(parts) == 1 or run.stop - run.start <= most
    firsts = [min(run.parts) for run in runs]
    assert firsts == sorted(firsts)


def test_neighbours_of_different_files_are_not_joined():
    runs = plan_byte_runs([Extent("f", 0, 4), Extent("g", 4, 8), Extent("f", 4, 8)], 0, 100)
    assert runs == (ByteRun("f", 0, 8, (0, 2)), ByteRun("g", 4, 8, (1,)))


def test_what_is_wanted_twice_is_read_twice():
    assert len(plan_byte_runs([Extent("f", 0, 4)] * 2, 10, 100)) == 2
