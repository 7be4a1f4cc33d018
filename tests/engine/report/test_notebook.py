"""A run in a notebook: figures by name, and its HTML."""

import html

import matplotlib.figure
import pytest

import polarax
from tests.engine.synthetic_runs import SEVEN_ROLES, matrix, write_run

NAME = "model.layers.1.o.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = [matrix(role, layer) for layer in range(2) for role in SEVEN_ROLES]
    return write_run(tmp_path_factory.mktemp("runs") / "run", rows)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        *((name, {}) for name in "scaling alpha nf coordination drift_budget rotation overlap".split()),
        ("principal_angles", {"role": "o"}),
        ("scaling", {"role": "q"}),
        ("metric", {"column": "drift"}),
        ("spectra", {"name": NAME}),
        ("rotation_maps", {"name": NAME}),
    ],
)
def test_every_picture_is_a_figure_that_a_notebook_shows(run, method, arguments):
    figure = getattr(run.plot, method)(**arguments)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    titles = {axis.get_title() for axis in figure.axes}
    if "role" in arguments:
        assert titles - {""} == {arguments["role"]}


def test_what_cannot_be_drawn_is_an_error(run, tmp_path):
    with pytest.raises(polarax.UsageError, match="has nothing for this picture"):
        run.plot.nf(role="embed")
    with pytest.raises(polarax.UsageError, match="Unknown role 'x'"):
        run.plot.alpha(role="x")
    with pytest.raises(KeyError, match="No matrix 'x'"):
        run.plot.spectra("x")


def test_the_html_of_a_run_is_its_table_and_its_reading(run):
    text = run._repr_html_()
    for sentence in run.summary()["reading"]:
        assert html.escape(sentence) in text
    assert text.count("<tr>") == 1 + len(SEVEN_ROLES)
    assert "14 matrices, finished" in text
