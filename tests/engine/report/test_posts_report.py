"""Several posts side by side as a page, as pictures and in a notebook."""

import json
import re

import pytest
from matplotlib.colors import to_hex

import polarax
from polarax.report.plots.over_posts import look, plot_budgets, plot_lines
from polarax.report.posts_page import render_posts_report, write_posts_report
from polarax.report.posts_table import rows_of_posts
from tests.engine.browser import needs_chromium, visit
from tests.engine.report.test_report import MALICIOUS, Page
from tests.engine.synthetic_runs import matrix, write_run


def rows(name=None):
    made = [matrix(role, layer) for layer in range(3) for role in ("q", "o")]
    return made if name is None else [*made, matrix("other", None, name=name)]


def made_up(path, labels=("sft", "rl"), name=None, finished=True):
    """Runs whose numbers were never computed."""
    path.mkdir(parents=True)
    skipped = [(name or "norm", name or "not a matrix (1-D)")]
    for label in labels:
        write_run(path / label, rows(name), base=name or "base", skipped=skipped, finished=finished)
    description = json.loads((path / labels[0] / "run.json").read_text())
    description["posts"] = {label: {"location": name or label, "fingerprint": "0"} for label in labels}
    description["between"] = []
    (path / "run.json").write_text(json.dumps(description))
    return polarax.Runs.open(path)


class TestPage:
    def test_everything_is_there(self, tmp_path):
        runs = made_up(tmp_path / "out")
        text = render_posts_report(runs)
        page = Page(text)
        assert {"posts_alpha", "posts_nf", "posts_coordination", "posts_budget", "table-section"} <= set(page.ids)
        links = [attributes.get("href") for tag, attributes in page.elements if tag == "a"]
        assert "sft/report.html" in links and "rl/report.html" in links
        assert "norm" in page.texts and "not a matrix (1-D)" in page.texts
        for sentence in runs.summary()["reading"]:
            assert " ".join(sentence.split()) in page.text
        assert len(page.ids) == len(set(page.ids)) and not re.search(r"url\((?!#)|@import|https?:", text)

    def test_an_interrupted_run(self, tmp_path):
        assert "interrupted" in Page(render_posts_report(made_up(tmp_path / "out", finished=False))).text

    def test_names_and_places_are_text(self, tmp_path):
        runs = made_up(tmp_path / "out", name=MALICIOUS)
        page = Page(render_posts_report(runs))
        assert [tag for tag, _ in page.elements].count("script") == 2
        assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
        assert "<img" not in runs._repr_html_() and "<script" not in runs._repr_html_()

    @needs_chromium
    @pytest.mark.slow
    def test_the_table_filters_by_post(self, tmp_path):
        page = write_posts_report(made_up(tmp_path / "out"))
        script = """
            const select = document.getElementById("filter-group");
            const labels = [...select.options].map((one) => one.textContent);
            select.value = "rl";
            select.dispatchEvent(new Event("change"));
            const lines = [...document.querySelectorAll("#matrices-table tbody tr")];
            return [labels, [...new Set(lines.map((line) => line.cells[0].textContent))],
                    document.getElementById("count").textContent];
        """
        seen = visit(page, tmp_path, script)
        assert seen.wrong == [] and "CONSOLE" not in seen.log
        assert seen.found == [["all", "sft", "rl"], ["rl"], "6 of 12"]


class TestTable:
    def test_a_line_for_each_role_and_post(self, tmp_path):
        summary = made_up(tmp_path / "out").summary()
        lines, _ = rows_of_posts(summary["posts"])
        assert [line[:3] for line in lines] == [
            ["role", "post", "matrices"], ["q", "sft", "3"], ["q", "rl", "3"], ["o", "sft", "3"], ["o", "rl", "3"]
        ]  # fmt: skip
        assert {len(line) for line in lines} == {len(lines[0])}


class TestPictures:
    def test_a_line_for_each_post(self, tmp_path):
        frames = {label: run.frame() for label, run in made_up(tmp_path / "out").items()}
        figure = plot_lines(frames, "nf", "nf")
        assert [axis.get_title() for axis in figure.axes] == ["q", "o"]
        for place, label in enumerate(frames):
            found = [one for one in figure.axes[0].lines if _is_data(one, frames[label]) and one.get_linestyle() != ":"]
            assert look(place)[0] in [to_hex(one.get_color()) for one in found]

    def test_a_bar_for_each_post(self, tmp_path):
        frames = {label: run.frame() for label, run in made_up(tmp_path / "out").items()}
        axis = plot_budgets(frames, role="o").axes[0]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["sft", "rl"]
        (scaling, *_), frame = axis.containers, frames["sft"]
        expected = frame.loc[frame["role"] == "o", "budget_scaling"].mean()
        assert scaling[0].get_height() == pytest.approx(expected)

    def test_in_a_notebook(self, tmp_path):
        runs = made_up(tmp_path / "out")
        for draw in (runs.plot.alpha, runs.plot.nf, runs.plot.coordination, runs.plot.drift_budget):
            assert draw(role="q").axes
        with pytest.raises(polarax.UsageError, match="has nothing|have nothing"):
            runs.plot.between()


def _is_data(line, frame):
    """Whether a line is the values of q over the layers."""
    return list(line.get_ydata()) == frame.loc[frame["role"] == "q", "nf"].tolist()
