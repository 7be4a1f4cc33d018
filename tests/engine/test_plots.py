"""The plots: panels, lines, bars and colours are those of the numbers."""

import resource
import struct

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import polarax
from polarax.report import plots
from polarax.report.plots import plot_drift_budget, plot_nf, plot_scaling, write_plots

PARTS = ("scaling", "coordinated", "discordant", "outside")


class TableRun:
    """A run made of a table: what the plots ask of one."""

    def __init__(self, rows, spectra=None):
        self._frame = pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"})
        self._spectra = spectra or {}

    def frame(self):
        return self._frame

    def spectra(self, name):
        return self._spectra.get(name, (np.array([4.0, 2.0, 1.0]), np.array([4.4, 2.0, 0.9])))


def row(role="q", layer=0, expert=None, **changes):
    shares = {f"budget_{part}": share for part, share in zip(PARTS, (0.1, 0.5, 0.3, 0.1), strict=True)}
    nulls = {f"budget_{part}_null": share for part, share in zip(PARTS, (0.2, 0.3, 0.3, 0.2), strict=True)}
    return {
        "name": f"{layer}.{role}.{expert}",
        "layer": layer,
        "role": role,
        "expert": expert,
        "status": "ok",
        "nf": 0.1 + 0.01 * (layer or 0),
        "nf_null": 0.1,
        "control": "closed form",
        **shares,
        **nulls,
        **changes,
    }


def visible(figure):
    """The panels with a title or bars, in order."""
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


TWO_ROLES = [row(role, layer) for role in ("o", "q") for layer in range(3)]


class TestScaling:
    def test_a_panel_for_each_role_and_a_line_for_each_matrix(self):
        panels = visible(plot_scaling(TableRun(TWO_ROLES)))
        assert [axis.get_title() for axis in panels] == ["q", "o"]
        for axis in panels:
            (image,) = axis.images
            np.testing.assert_allclose(image.get_array(), [[1.1, 1.0, 0.9]] * 3)
            assert [tick.get_text() for tick in axis.get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]

    def test_the_colours_are_centred_on_one(self):
        for axis in visible(plot_scaling(TableRun(TWO_ROLES))):
            (image,) = axis.images
            low, high = image.get_clim()
            assert (low + high) / 2 == pytest.approx(1) and 0.05 < high - 1 < 0.11
            assert image.cmap.name == "RdBu_r"  # red is larger

    def test_one_role_and_one_layer(self):
        (axis,) = visible(plot_scaling(TableRun([row()])))
        assert axis.images[0].get_array().shape == (1, 3)

    def test_roles_outside_the_layers_have_a_panel_too(self):
        rows = [row("embed", None, status="ok"), row("q", 0)]
        assert [axis.get_title() for axis in visible(plot_scaling(TableRun(rows)))] == ["embed", "q"]

    def test_spectra_of_several_lengths_share_a_panel(self):
        spectra = {"0.q.None": (np.ones(3), np.array([1.5, 1.0, 0.5])), "1.q.None": (np.ones(6), np.arange(6) / 5)}
        run = TableRun([row(layer=0), row(layer=1)], spectra)
        values = visible(plot_scaling(run))[0].images[0].get_array()
        np.testing.assert_allclose(values, [[1.5, 1.5, 1, 1, 0.5, 0.5], np.arange(6) / 5])

    def test_long_spectra_become_means_of_neighbours(self):
        post = 1 + np.arange(2048) / 2048
        run = TableRun([row()], {"0.q.None": (np.ones(2048), post)})
        values = visible(plot_scaling(run))[0].images[0].get_array()
        np.testing.assert_allclose(values[0], post.reshape(512, 4).mean(axis=1))

    def test_a_singular_value_of_zero_is_a_gap(self):
        run = TableRun([row(status="rank 2 of 3 in base")], {"0.q.None": (np.array([2.0, 1, 0]), np.ones(3))})
        values = visible(plot_scaling(run))[0].images[0].get_array()
        assert np.ma.getmaskarray(values).tolist() == [[False, False, True]] or np.isnan(values[0, 2])

    def test_rows_that_say_nothing_are_left_out(self):
        nan = np.full(3, np.nan)
        rows = [row(), row(layer=1, status="not finite: 1 in post"), row(layer=2, status="zero base")]
        run = TableRun(rows, {"1.q.None": (nan, nan), "2.q.None": (np.zeros(3), np.ones(3))})
        (axis,) = visible(plot_scaling(run))
        assert axis.images[0].get_array().shape == (1, 3)

    @pytest.mark.parametrize("change", [{"status": "unchanged"}, {"role": "other"}])
    def test_nothing_to_show(self, change):
        assert plot_scaling(TableRun([row() | change])) is None

    def test_no_change_of_singular_values_at_all(self):
        same = np.array([2.0, 1.0])
        figure = plot_scaling(TableRun([row()], {"0.q.None": (same, same)}))
        figure.canvas.draw()  # limits that coincide would raise here


class TestNf:
    def test_a_panel_for_each_role_with_nf_and_its_control(self):
        panels = visible(plot_nf(TableRun(TWO_ROLES[::-1])))
        assert [axis.get_title() for axis in panels] == ["q", "o"]
        for axis in panels:
            nf, control = axis.lines[:2]
            assert nf.get_xdata().tolist() == control.get_xdata().tolist() == [0, 1, 2]  # sorted by layer
            np.testing.assert_allclose(nf.get_ydata(), [0.1, 0.11, 0.12])
            np.testing.assert_allclose(control.get_ydata(), 0.1)
            assert nf.get_linestyle() == "-" and control.get_linestyle() == "--"
            assert axis.get_ylim()[0] == 0

    def test_a_rough_control_is_hollow_and_in_the_legend(self):
        figure = plot_nf(TableRun([row(layer=0), row(layer=1, control="out of range", nf_null=0.3)]))
        rough = visible(figure)[0].lines[2]
        assert (rough.get_xdata().tolist(), rough.get_ydata().tolist()) == ([1], [0.3])
        assert to_hex(rough.get_markerfacecolor()) == "#ffffff"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nf", "control", "control, rough"]
        quiet = plot_nf(TableRun([row()]))
        assert [text.get_text() for text in quiet.legends[0].get_texts()] == ["nf", "control"]

    def test_rows_without_nf_or_layer_are_left_out(self):
        rows = [row(layer=0), row(layer=1, nf=np.nan), row("embed", None), row("other", 3)]
        (axis,) = visible(plot_nf(TableRun(rows)))
        assert axis.lines[0].get_xdata().tolist() == [0]

    @pytest.mark.parametrize("rows", [[row("embed", None)], [row(nf=np.nan)], [row("other", 0)]])
    def test_nothing_to_show(self, rows):
        assert plot_nf(TableRun(rows)) is None

    def test_more_roles_than_colours(self):
        roles = ["q", "k", "v", "o", "gate", "up", "down", "router"]
        assert len(visible(plot_nf(TableRun([row(role) for role in roles])))) == 8


class TestDriftBudget:
    def test_four_parts_for_each_matrix_and_a_control_for_each_role(self):
        figure = plot_drift_budget(TableRun(TWO_ROLES))
        (axis,) = visible(figure)
        bars = [bar for bar in axis.patches if bar.get_height() > 0]
        assert len(bars) == 4 * (6 + 2)
        stacks = {}
        for bar in bars:
            stacks.setdefault(round(bar.get_x() + bar.get_width() / 2), []).append(bar)
        for position, stack in stacks.items():
            shares = [bar.get_height() for bar in stack]
            control = position in (3, 8)  # three layers, the control, a gap
            np.testing.assert_allclose(shares, (0.2, 0.3, 0.3, 0.2) if control else (0.1, 0.5, 0.3, 0.1))
            np.testing.assert_allclose([bar.get_y() for bar in stack], np.cumsum([0, *shares[:-1]]))
            assert all(bool(bar.get_hatch()) == control for bar in stack)
        assert sorted(stacks) == [0, 1, 2, 3, 5, 6, 7, 8]
        labels = [tick.get_text() for tick in axis.get_xticklabels()]
        assert labels == ["0", "1", "2", "control"] * 2
        assert [text.get_text() for text in axis.texts] == ["q", "o"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PARTS)

    def test_rows_without_a_budget_are_left_out(self):
        rows = [row(), row(layer=1, budget_scaling=np.nan), row("other", 2)]
        (axis,) = visible(plot_drift_budget(TableRun(rows)))
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "control"]

    def test_matrices_outside_the_layers_have_a_bar(self):
        (axis,) = visible(plot_drift_budget(TableRun([row("embed", None)])))
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["", "control"]

    def test_nothing_to_show(self):
        assert plot_drift_budget(TableRun([row(budget_scaling=np.nan)])) is None


class TestWriting:
    def test_every_plot_of_a_run(self, llama_run, tmp_path):
        written = write_plots(llama_run, tmp_path / "plots")
        assert [path.name for path in written] == ["scaling.png", "nf.png", "drift_budget.png"]
        for path in written:
            width, height = png_size(path)
            assert 500 < width < 5300 and 300 < height < 5300 and path.stat().st_size > 10_000

    def test_the_numbers_of_a_run_are_what_is_drawn(self, llama_run):
        frame = llama_run.frame()
        axis = {axis.get_title(): axis for axis in visible(plot_nf(llama_run))}
        assert set(axis) == {"q", "k", "v", "o", "gate", "up", "down"}
        q = frame[frame["role"] == "q"].sort_values("layer")
        np.testing.assert_array_equal(axis["q"].lines[0].get_ydata(), q["nf"])
        panels = {axis.get_title(): axis for axis in visible(plot_scaling(llama_run))}
        assert set(panels) == {*axis, "embed", "head"}
        base, post = llama_run.spectra("lm_head.weight")
        np.testing.assert_allclose(panels["head"].images[0].get_array()[0], post / base)

    def test_a_run_of_part_of_the_metrics_has_part_of_the_plots(self, small, tmp_path):
        run = polarax.compare(small.base, small.post, metrics="change", progress=False)
        assert [path.name for path in write_plots(run, tmp_path)] == ["scaling.png"]

    def test_a_run_where_nothing_can_be_drawn_has_no_plots(self, tmp_path):
        assert write_plots(TableRun([row("other", 0)]), tmp_path) == []

    def test_a_full_disk_leaves_no_part_of_a_picture(self, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # the system then refuses longer files
        try:
            with pytest.raises(polarax.RunError, match=r"^Cannot write the run at .*plots: File too large\.$"):
                write_plots(TableRun([row("q", 0)]), tmp_path / "plots")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob("*.png"))

    def test_a_large_model_does_not_make_a_picture_without_end(self):
        rows = [row(role, layer) for role in ("q", "k", "v", "o") for layer in range(200)]
        for figure in (plot_drift_budget(TableRun(rows)), plot_nf(TableRun(rows)), plot_scaling(TableRun(rows))):
            assert max(figure.get_size_inches()) <= 40

    @pytest.mark.parametrize("plot", [plot_scaling, plot_nf, plot_drift_budget])
    def test_without_matplotlib_each_says_how_to_get_it(self, plot, monkeypatch):
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(polarax.UsageError, match=r"pip install 'polarax\[plot\]'"):
            plot(TableRun(TWO_ROLES))

    def test_no_window_is_opened(self, llama_run, monkeypatch):
        import matplotlib.pyplot

        monkeypatch.setattr(matplotlib.pyplot, "figure", lambda *_, **__: pytest.fail("pyplot was used"))
        assert plots.plot_nf(llama_run) is not None
        assert matplotlib.pyplot.get_fignums() == []
