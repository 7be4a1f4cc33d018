"""The plots: panels, lines, bars and colours are those of the numbers."""

import functools
import resource
import struct

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

import polarax
from polarax.report.plots import (
    draw_plots,
    plot_cosines,
    plot_drift_budget,
    plot_over_layers,
    plot_overlap,
    plot_principal_angles,
    plot_rotation,
    plot_rotation_maps,
    plot_scaling,
    plot_spectra,
    write_plots,
)
from polarax.report.plots.scaling import scaling_maps
from polarax.report.plots.style import logarithmic_ticks, printable, to_svg
from tests.engine.synthetic_runs import SEVEN_ROLES, matrix, write_run

plot_alpha, plot_nf, plot_coordination = (
    functools.partial(plot_over_layers, metric=metric) for metric in ("alpha", "nf", "coordination")
)

ROUGH = "isotropic control, rough: condition number times drift above 1"
PARTS = ("scaling", "coordinated", "discordant", "outside")


class TableRun:
    """A run made of a table: what the plots ask of one."""

    def __init__(self, rows, spectra=None, noise=None):
        self._frame = pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"})
        self._spectra, self._noise = spectra or {}, noise or {}  # name -> mean and deviation of its values under noise

    def frame(self):
        return self._frame

    def spectra(self, name):
        return self._spectra.get(name, (np.array([4.0, 2.0, 1.0]), np.array([4.4, 2.0, 0.9])))

    def arrays(self, kind):
        for name in self._frame["name"]:
            if kind in ("s_base", "s_post"):
                yield name, self.spectra(name)[kind == "s_post"]
            elif name in self._noise:
                yield name, self._noise[name][kind == "s_post_null_std"]


def row(role="q", layer=0, expert=None, **changes):
    shares = {f"budget_{part}": share for part, share in zip(PARTS, (0.1, 0.5, 0.3, 0.1), strict=True)}
    nulls = {f"budget_{part}_null": share for part, share in zip(PARTS, (0.2, 0.3, 0.3, 0.2), strict=True)}
    return {
        "name": f"{layer}.{role}.{expert}",
        "layer": layer,
        "role": role,
        "expert": expert,
        "status": "ok",
        "rows": 3,
        "cols": 3,
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
            image, _ = axis.images  # the map, its control
            np.testing.assert_allclose(image.get_array(), [[1.1, 1.0, 0.9]] * 3)
            assert [tick.get_text() for tick in axis.get_yticklabels()] == [
                "layer 0",
                "layer 1",
                "layer 2",
                "noise ± sd",
            ]

    def test_the_colours_are_centred_on_one(self):
        for axis in visible(plot_scaling(TableRun(TWO_ROLES))):
            for image in axis.images:
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
        np.testing.assert_allclose(values[0], post.reshape(256, 8).mean(axis=1))

    def test_a_singular_value_of_zero_is_a_gap(self):
        run = TableRun([row(status="rank 2 of 3 in base")], {"0.q.None": (np.array([2.0, 1, 0]), np.ones(3))})
        values = visible(plot_scaling(run))[0].images[0].get_array()
        assert np.ma.getmaskarray(values).tolist() == [[False, False, True]] or np.isnan(values[0, 2])

    def test_the_control_is_what_noise_does_to_a_ratio(self):
        base, mean, std = np.array([4.0, 2.0, 1.0]), np.array([4.0, 2.1, 1.5]), np.array([0.1, 0.08, 0.06])
        run = TableRun([row(drift=0.1)], {"0.q.None": (base, base)}, {"0.q.None": (mean, std)})
        axis = visible(plot_scaling(run))[0]
        expected = [(mean + std) / base, mean / base, (mean - std) / base]
        np.testing.assert_allclose(axis.images[1].get_array(), expected)

    def test_of_several_lines_the_control_is_the_median(self):
        noise = {f"{layer}.q.None": (np.array([4, 2, 1]) * (1 + layer**2), np.full(3, 1 + layer)) for layer in range(3)}
        one = scaling_maps(TableRun([row(layer=layer, drift=1.0) for layer in range(3)], noise=noise))["q"]
        np.testing.assert_allclose(one.null, 2)
        np.testing.assert_allclose(one.null_std, [2 / 4, 2 / 2, 2 / 1])

    def test_stacks_that_were_written_before_the_law_have_the_first_order(self):
        """A value stays where it is in the mean, and spreads by sd; the rows of others are left as they are."""
        noise = {"1.o.None": (np.full(3, 8.0), np.full(3, 2.0))}
        maps = scaling_maps(TableRun([row("q", 0, drift=0.1), row("o", 1, drift=0.1)], noise=noise))
        base = np.array([4.0, 2.0, 1.0])
        np.testing.assert_allclose(maps["q"].control, 1 + np.outer([1, 0, -1], 0.1 * np.sqrt(21) / 3 / base))
        np.testing.assert_allclose(maps["o"].control, np.stack([10 / base, 8 / base, 6 / base]))

    def test_the_mean_of_values_that_are_apart_spreads_less_by_their_root(self):
        """D = sd G moves singular value i by sd g to first order, the mean of b neighbours by 1 / sqrt(b) of that."""
        rng = np.random.default_rng(0)
        base = np.linspace(20, 10, 1024)
        run = TableRun([row(rows=1024, cols=1024, drift=0.001)], {"0.q.None": (base, base)})
        control = scaling_maps(run)["q"].null_std
        deviation = 0.001 * np.linalg.norm(base) / 1024
        ratios = 1 + deviation * rng.normal(size=(4000, 1024)) / base
        drawn = ratios.reshape(4000, 256, 4).mean(axis=2)
        np.testing.assert_allclose(control, drawn.std(axis=0), rtol=0.06)
        axis = visible(plot_scaling(run))[0]
        np.testing.assert_allclose(axis.images[1].get_array(), [1 + control, np.ones(256), 1 - control])

    def test_dense_values_move_together_and_up(self, tmp_path):
        """Noise far above the spacing: a cell's mean and deviation are those of draws, 2 neighbours in each cell."""
        rng = np.random.default_rng(1)
        left, _ = np.linalg.qr(rng.normal(size=(640, 512)))
        base = left * np.concatenate([np.geomspace(40, 5, 12), np.geomspace(2, 0.02, 500)])
        noise = rng.normal(size=base.shape) * 0.05
        name = "model.layers.0.self_attn.q_proj.weight"
        pair = ({name: x.astype(np.float32)} for x in (base, base + noise))
        run = polarax.compare(*pair, out=tmp_path / "run", metrics=["change", "scaling"], progress=False)
        one = scaling_maps(run)["q"]
        values = np.linalg.svd(base, compute_uv=False)
        draws = [np.linalg.svd(base + 0.05 * rng.normal(size=base.shape), compute_uv=False) / values for _ in range(24)]
        drawn = np.stack(draws).reshape(24, 256, 2).mean(axis=2)
        std = drawn.std(axis=0, ddof=1)
        assert drawn.mean(axis=0)[-1] > 5 and (np.abs(one.null - drawn.mean(axis=0)) < std + 0.002).all()
        assert 0.6 < np.median(one.null_std / std) < 1.2

    def test_without_the_drift_the_control_is_not_known(self):
        assert np.isnan(scaling_maps(TableRun([row()]))["q"].control).all()

    def test_many_experts_are_a_line_for_each_layer(self):
        rows = [row("up", layer, expert, drift=0.1) for layer in range(2) for expert in range(100)]
        spectra = {one["name"]: (np.ones(2), np.array([1 + one["expert"] / 1000, 1 + one["layer"]])) for one in rows}
        one = scaling_maps(TableRun(rows, spectra))["up"]
        assert one.labels == ["layer 0", "layer 1"]
        np.testing.assert_allclose(one.ratio, [[1.0495, 1], [1.0495, 2]])
        single = 0.1 * np.sqrt(2) / 3  # of one expert; of the mean of a hundred a tenth
        np.testing.assert_allclose(one.null_std, single / 10)

    def test_one_role(self):
        assert [axis.get_title() for axis in visible(plot_scaling(TableRun(TWO_ROLES), role="o"))] == ["o"]
        with pytest.raises(polarax.UsageError, match=r"^Unknown role 'x'\. Expected one of embed, "):
            plot_scaling(TableRun(TWO_ROLES), role="x")

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


def lines_of(axis):
    """Line style -> line."""
    return {line.get_linestyle(): line for line in axis.lines}


def band_of(axis, number):
    """Of the bands of a panel one: layer -> (low, high)."""
    points = axis.collections[number].get_paths()[0].vertices
    return {x: (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in points[:, 0]}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestNf:
    def test_a_panel_for_each_role_with_nf_and_its_control(self):
        panels = visible(plot_nf(TableRun(TWO_ROLES[::-1])))
        assert [axis.get_title() for axis in panels] == ["q", "o"]
        for axis in panels:
            nf, control = lines_of(axis)["-"], lines_of(axis)["--"]
            assert nf.get_xdata().tolist() == control.get_xdata().tolist() == [0, 1, 2]  # sorted by layer
            np.testing.assert_allclose(nf.get_ydata(), [0.1, 0.11, 0.12])
            np.testing.assert_allclose(control.get_ydata(), 0.1)
            assert axis.get_ylim()[0] == 0

    def test_the_band_of_the_control_is_three_deviations_wide(self):
        rows = [row(layer=layer, nf_null_std=0.001 * (1 + layer)) for layer in range(3)]
        figure = plot_nf(TableRun(rows))
        band = band_of(visible(figure)[0], 0)
        for layer in range(3):
            np.testing.assert_allclose(band[layer], [0.1 - 0.003 * (1 + layer), 0.1 + 0.003 * (1 + layer)])
        assert legend_of(figure) == ["isotropic control", "isotropic control, ± 3 standard deviations", "nf"]

    def test_one_layer_has_a_band_too(self):
        (axis,) = visible(plot_nf(TableRun([row(layer=4, nf_null_std=0.01)])))
        assert list(band_of(axis, 0)) == [3.6, 4.4]

    def test_sampled_controls_are_drawn_beside_the_closed_form(self):
        rows = [row(layer=layer, nf_spectrum=0.2, nf_spectrum_std=0.01) for layer in range(2)]
        figure = plot_nf(TableRun(rows))
        axis = visible(figure)[0]
        np.testing.assert_allclose(lines_of(axis)["-."].get_ydata(), 0.2)
        edges = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"]
        np.testing.assert_allclose(edges, [0.17, 0.23])
        name = "same spectrum, random directions"
        assert legend_of(figure) == ["isotropic control", name, f"{name}, ± 3 standard deviations", "nf"]

    def test_controls_with_one_mean_have_one_line(self):
        spectrum = {"nf_spectrum": 0.1, "nf_spectrum_std": 0.02}
        figure = plot_nf(TableRun([row(layer=layer, nf_null_std=0.01, **spectrum) for layer in range(2)]))
        (axis,) = visible(figure)
        assert sorted(line.get_linestyle() for line in axis.lines) == ["-", "--", ":", ":"]
        np.testing.assert_allclose(band_of(axis, 0)[0], [0.07, 0.13])
        edges = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"]
        np.testing.assert_allclose(edges, [0.04, 0.16])

    def test_a_rough_control_is_hollow_and_in_the_legend(self):
        figure = plot_nf(TableRun([row(layer=0), row(layer=1, control="out of range", nf_null=0.3)]))
        (rough,) = [line for line in visible(figure)[0].lines if to_hex(line.get_markerfacecolor()) == "#ffffff"]
        assert (rough.get_xdata().tolist(), rough.get_ydata().tolist()) == ([1], [0.3])
        assert legend_of(figure) == ["isotropic control", ROUGH, "nf"]
        assert legend_of(plot_nf(TableRun([row()]))) == ["isotropic control", "nf"]

    def test_a_sampled_row_out_of_range_still_has_a_rough_closed_form(self):
        figure = plot_nf(TableRun([row(layer=0, control="sampled", control_reach=2.0)]))
        assert ROUGH in legend_of(figure)

    def test_experts_are_a_median_with_a_band(self):
        rows = [row("up", layer, expert, nf=expert / 100) for layer in range(2) for expert in range(101)]
        figure = plot_nf(TableRun(rows))
        (axis,) = visible(figure)
        np.testing.assert_allclose(lines_of(axis)["-"].get_ydata(), 0.5)
        np.testing.assert_allclose(band_of(axis, 0)[1], [0.1, 0.9])
        assert legend_of(figure)[-2:] == ["10% to 90% of a layer's matrices", "nf, median of a layer"]

    def test_rows_without_nf_or_layer_are_left_out(self):
        rows = [row(layer=0), row(layer=1, nf=np.nan), row("embed", None), row("other", 3)]
        (axis,) = visible(plot_nf(TableRun(rows)))
        assert lines_of(axis)["-"].get_xdata().tolist() == [0]

    @pytest.mark.parametrize("rows", [[row("embed", None)], [row(nf=np.nan)], [row("other", 0)]])
    def test_nothing_to_show(self, rows):
        assert plot_nf(TableRun(rows)) is None

    def test_many_roles(self):
        roles = ["q", "k", "v", "o", "gate", "up", "down", "router"]
        assert len(visible(plot_nf(TableRun([row(role) for role in roles])))) == 8


class TestOtherMetrics:
    def test_alpha_and_its_control(self):
        rows = [row(layer=i, alpha=1 + i / 100, alpha_null=1.002, alpha_null_std=0.001) for i in range(3)]
        (axis,) = visible(plot_alpha(TableRun(rows)))
        np.testing.assert_allclose(lines_of(axis)["-"].get_ydata(), [1, 1.01, 1.02])
        np.testing.assert_allclose(band_of(axis, 0)[2], [0.999, 1.005])

    def test_any_column_or_none(self):
        (axis,) = visible(plot_over_layers(TableRun([row(drift=0.5)]), "drift", "drift"))
        assert lines_of(axis)["-"].get_ydata().tolist() == [0.5]
        assert plot_over_layers(TableRun([row()]), "drift", "drift") is None

    def test_coordination_has_its_control_at_zero(self):
        (axis,) = visible(plot_coordination(TableRun([row(coordination=0.3, coordination_null_std=0.01)])))
        np.testing.assert_allclose(lines_of(axis)["--"].get_ydata(), 0)
        np.testing.assert_allclose(band_of(axis, 0)[-0.4], [-0.03, 0.03])


class TestRotation:
    def test_roles_and_layers_in_order_with_gaps(self):
        rows = [row(role, layer, overlap_left=0.9 - layer / 10, overlap_right=0.8) for role in "oq" for layer in (3, 1)]
        left, right, nf = visible(plot_rotation(TableRun(rows[1:])))
        np.testing.assert_allclose(left.images[0].get_array().filled(np.nan), [[0.2, 0.4], [0.2, np.nan]])
        np.testing.assert_allclose(right.images[0].get_array().filled(np.nan), [[0.2, 0.2], [0.2, np.nan]])
        assert [tick.get_text() for tick in nf.get_yticklabels()] == ["q", "o"]
        assert [tick.get_text() for tick in nf.get_xticklabels()] == ["1", "3"]

    def test_excess_is_centred_on_one(self):
        rows = [row(layer=i, nf_excess=excess) for i, excess in enumerate((0.5, 1, 1.7))]
        image = visible(plot_rotation(TableRun(rows)))[-1].images[0]
        low, high = image.get_clim()
        assert low * high == pytest.approx(1) and high == pytest.approx(2) and image.cmap.name == "RdBu_r"

    def test_what_the_subspaces_lost(self):
        rows = [row(layer=i, overlap_left=0.99, overlap_right=1.0 - 10.0**-i) for i in range(1, 4)]
        (axis,) = visible(plot_overlap(TableRun(rows)))
        np.testing.assert_allclose(lines_of(axis)["-"].get_ydata(), 0.01)
        np.testing.assert_allclose(lines_of(axis)["--"].get_ydata(), [0.1, 0.01, 0.001])
        assert axis.get_yscale() == "log"

    def test_principal_angles_are_the_cosines_in_degrees(self, llama_run):
        axis = {axis.get_title(): axis for axis in visible(plot_principal_angles(llama_run))}["v"]
        values = axis.images[0].get_array()
        for side, columns in (("left", slice(0, 16)), ("right", slice(17, 33))):
            cosines = llama_run.array("model.layers.1.self_attn.v_proj.weight", f"cosines_{side}")
            np.testing.assert_allclose(values[1, columns], np.degrees(np.arccos(cosines)), atol=1e-5)

    def test_without_overlaps(self, tmp_path):
        run = write_run(tmp_path / "run", [matrix()], groups=("change",), arrays=False)
        assert plot_rotation(run) is None and plot_overlap(run) is None and plot_principal_angles(run) is None


class TestOneMatrix:
    NAME = "model.layers.1.self_attn.o_proj.weight"

    def test_spectra_and_their_ratio(self, llama_run):
        above, below = plot_spectra(llama_run, self.NAME).axes
        base, post = llama_run.spectra(self.NAME)
        index = np.asarray(above.lines[0].get_xdata())
        assert index[0] == 1 and index[-1] == len(base)
        np.testing.assert_array_equal(above.lines[0].get_ydata(), base[index - 1])
        np.testing.assert_array_equal(above.lines[1].get_ydata(), post[index - 1])
        assert above.get_xscale() == above.get_yscale() == "log"
        np.testing.assert_allclose(below.lines[1].get_ydata(), (post / base)[index - 1])

    def test_the_band_is_what_noise_gives(self, llama_run):
        name = "model.layers.1.self_attn.q_proj.weight"  # noise was added: the ratios leave room for the band
        _, below = plot_spectra(llama_run, name).axes
        base, mean, std = (llama_run.array(name, kind)[0] for kind in ("s_base", "s_post_null", "s_post_null_std"))
        np.testing.assert_allclose(band_of(below, 0)[1], [(mean - 2 * std) / base, (mean + 2 * std) / base])

    def test_where_noise_lifts_small_values_that_is_drawn_too(self, tmp_path):
        base = np.diag(np.geomspace(10, 1e-4, 40)).astype(np.float32)
        post = base + np.random.default_rng(0).normal(0, 0.01, base.shape).astype(np.float32)
        run = polarax.compare({"q": base}, {"q": post}, out=tmp_path / "run", metrics=["scaling"], progress=False)
        figure = plot_spectra(run, "q")
        above, below = figure.axes
        np.testing.assert_allclose(lines_of(above)["-"].get_ydata(), run.array("q", "s_post_null"))
        assert legend_of(figure) == ["base", "post", "base with noise", "noise, ± 2 standard deviations"]
        np.testing.assert_allclose(
            lines_of(below)["-"].get_ydata(), run.array("q", "s_post_null") / run.spectra("q")[0]
        )
        low, high = band_of(below, 0)[30]
        assert low > 1.5 and below.get_ylim()[1] > high  # far above 1, and in sight
        assert all(end > 0 for end in band_of(below, 0)[1])

    def test_ratios_to_rounding_are_not_drawn(self, tmp_path):
        rng = np.random.default_rng(0)
        base = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 30))
        run = polarax.compare({"q": base}, {"q": 1.01 * base}, out=tmp_path / "run", progress=False)
        _, below = plot_spectra(run, "q").axes
        np.testing.assert_array_equal(np.isfinite(below.lines[1].get_ydata()), np.arange(30) < 4)
        assert below.get_ylim()[1] < 1.1

    def test_the_band_of_a_run_without_the_law_is_of_first_order(self, tmp_path):
        run = write_run(tmp_path / "run", [matrix()], groups=("change", "scaling"), arrays=False)
        name = "model.layers.0.q.weight"
        _, below = plot_spectra(run, name).axes
        base, _ = run.spectra(name)
        first = 2 * run.frame()["drift"][0] * np.linalg.norm(base) / 256 / base[0]
        np.testing.assert_allclose(band_of(below, 0)[1], [1 - first, 1 + first])

    def test_rotations_and_cosines(self, llama_run):
        panels = [axis for axis in plot_rotation_maps(llama_run, self.NAME).axes if axis.get_title()]
        kinds = ("rotation_left", "rotation_right", "rotation_difference")
        for axis, kind in zip(panels, kinds, strict=True):
            np.testing.assert_allclose(axis.images[0].get_array(), llama_run.array(self.NAME, kind), atol=1e-12)
        (axis,) = plot_cosines(llama_run, self.NAME).axes
        kinds = ("cosines_left", "cosines_left_null", "cosines_right", "cosines_right_null")
        for line, kind in zip(axis.lines, kinds, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), llama_run.array(self.NAME, kind))

    def test_what_was_not_measured(self, tmp_path):
        run = write_run(tmp_path / "run", [matrix()], groups=("change",), arrays=False)
        name = "model.layers.0.q.weight"
        assert plot_spectra(run, name) is not None
        assert plot_rotation_maps(run, name) is None and plot_cosines(run, name) is None
        for draw in (plot_spectra, plot_rotation_maps, plot_cosines):
            with pytest.raises(KeyError, match="No matrix 'x'"):
                draw(run, "x")


class TestDriftBudget:
    def bars(self, axis):
        """Part -> (low, high) of each bar, from the bottom up."""
        return [
            (np.broadcast_to(patch.get_data().baseline, len(patch.get_data().values)), patch.get_data().values)
            for patch in axis.patches
        ]

    def controls(self, axis):
        """The lines across the bars, in their ink."""
        lines = [one for one in axis.collections if isinstance(one, LineCollection)]
        return [one for one in lines if to_hex(one.get_edgecolor()[0]) == "#1f2328"]

    def test_four_parts_for_each_matrix_against_the_ends_of_the_controls(self):
        figure = plot_drift_budget(TableRun(TWO_ROLES))
        assert [axis.get_title() for axis in visible(figure)] == ["q", "o"]
        for axis in visible(figure):
            for (low, high), bottom, top in zip(self.bars(axis), (0, 0.1, 0.6, 0.9), (0.1, 0.6, 0.9, 1), strict=True):
                np.testing.assert_allclose(low, [bottom] * 3, atol=1e-12)
                np.testing.assert_allclose(high, [top] * 3)
            ends = [[segment[0][1] for segment in line.get_segments()] for line in self.controls(axis)]
            np.testing.assert_allclose(ends, [[0.2] * 3, [0.5] * 3, [0.8] * 3])
        assert legend_of(figure) == [*PARTS, "where a random change's parts end"]

    def test_the_controls_lie_above_the_bars(self):
        (axis,) = visible(plot_drift_budget(TableRun([row(), row(layer=1)])))
        lines = self.controls(axis)
        assert len(lines) == 3
        assert min(line.get_zorder() for line in lines) > max(patch.get_zorder() for patch in axis.patches)

    def test_rows_without_a_budget_are_a_gap_or_left_out(self):
        rows = [row(), row(layer=1, budget_scaling=np.nan), row(layer=2), row("other", 2)]
        (axis,) = visible(plot_drift_budget(TableRun(rows)))
        assert np.isnan(self.bars(axis)[0][1]).tolist() == [False, True, False]

    def test_experts_are_a_mean(self):
        shares = ({"budget_scaling": 0.1, "budget_outside": 0.1}, {"budget_scaling": 0.2, "budget_outside": 0.0})
        rows = [row("up", 0, expert, **one) for expert, one in enumerate(shares)]
        (axis,) = visible(plot_drift_budget(TableRun(rows)))
        np.testing.assert_allclose([high[0] for _, high in self.bars(axis)], [0.15, 0.65, 0.95, 1])

    def test_matrices_outside_the_layers_share_a_panel(self):
        panels = visible(plot_drift_budget(TableRun([row("head", None), row("embed", None), row("q", 0)])))
        assert [axis.get_title() for axis in panels] == ["q", "outside the layers"]
        assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["embed", "head"]

    def test_nothing_to_show(self):
        assert plot_drift_budget(TableRun([row(budget_scaling=np.nan)])) is None


class TestStyle:
    def test_text_of_a_checkpoint_is_a_label_of_one_line(self):
        assert printable("a\nb\x00") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
        assert len(printable("x" * 1000)) == 64 and printable("ключ $x$") == "ключ $x$"

    def test_a_picture_in_a_page_takes_the_colours_of_the_page(self):
        text = to_svg(plot_nf(TableRun(TWO_ROLES)), "nf", themed=True)
        assert text.startswith("<svg") and "currentColor" in text and "var(--blue)" in text
        assert "#1f2328" not in text and "http" not in text and "<metadata" not in text
        assert "<?xml" in to_svg(plot_nf(TableRun(TWO_ROLES)), "nf")

    @pytest.mark.parametrize("name", ["$\\frac{", "$x$", "<b>&", "名前", "a_b^c"])
    def test_a_name_is_neither_tex_nor_markup(self, tmp_path, name):
        run = write_run(tmp_path / "run", [matrix(name=name)])
        text = to_svg(plot_spectra(run, name), "x", themed=True)
        assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in text

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (1, 10, [1, 2, 5, 10]),
            (0.5, 2, [0.5, 1, 2]),
            (1e-5, 1, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
            (2.1, 4.41, [2.1, 3.0432, 4.41]),
        ],
    )
    def test_ticks_are_few_and_round(self, low, high, ticks):
        np.testing.assert_allclose(logarithmic_ticks(low, high), ticks, rtol=1e-4)
        assert 1 < len(logarithmic_ticks(1e-12, 1e12)) <= 6


class TestWriting:
    def test_every_plot_of_a_run(self, llama_run, tmp_path):
        written = write_plots(draw_plots(llama_run), tmp_path / "plots")
        names = "scaling alpha nf rotation overlap principal_angles drift_budget coordination".split()
        assert [path.stem for path in written] == names
        for path in written:
            assert "<svg" in path.with_suffix(".svg").read_text()
            width, height = png_size(path)
            assert 500 < width < 5300 and 300 < height < 5300 and path.stat().st_size > 10_000

    def test_the_numbers_of_a_run_are_what_is_drawn(self, llama_run):
        frame = llama_run.frame()
        axis = {axis.get_title(): axis for axis in visible(plot_nf(llama_run))}
        assert set(axis) == {"q", "k", "v", "o", "gate", "up", "down"}
        q = frame[frame["role"] == "q"].sort_values("layer")
        np.testing.assert_array_equal(lines_of(axis["q"])["-"].get_ydata(), q["nf"])
        panels = {axis.get_title(): axis for axis in visible(plot_scaling(llama_run))}
        assert set(panels) == {*axis, "embed", "head"}
        base, post = llama_run.spectra("lm_head.weight")
        np.testing.assert_allclose(panels["head"].images[0].get_array()[0], post / base)

    def test_a_run_of_part_of_the_metrics_has_part_of_the_plots(self, small, tmp_path):
        run = polarax.compare(small.base, small.post, metrics="change", progress=False)
        assert [path.name for path in write_plots(draw_plots(run), tmp_path)] == ["scaling.png"]

    def test_a_run_where_nothing_can_be_drawn_has_no_plots(self, tmp_path):
        assert write_plots(draw_plots(TableRun([row("other", 0)])), tmp_path) == []

    def test_a_full_disk_leaves_no_part_of_a_picture(self, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # the system then refuses longer files
        try:
            with pytest.raises(polarax.RunError, match=r"^Cannot write the run at .*plots: File too large\.$"):
                write_plots(draw_plots(TableRun([row("q", 0)])), tmp_path / "plots")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob("*.png"))

    def test_a_large_model_does_not_make_a_picture_without_end(self):
        rows = [row(role, layer) for role in SEVEN_ROLES for layer in range(200)]
        for figure in (plot_drift_budget(TableRun(rows)), plot_nf(TableRun(rows)), plot_scaling(TableRun(rows))):
            assert max(figure.get_size_inches()) <= 20

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
        assert plot_nf(llama_run) is not None
        assert matplotlib.pyplot.get_fignums() == []
