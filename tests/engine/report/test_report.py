"""The report as a page: what is on it, for every kind of run, and how it behaves in a browser."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import polarax
from polarax.findings.chosen import choose_matrices
from polarax.report.run_page import render_report, write_report
from polarax.report.table_data import script_json, table_data
from polarax.results.run_directory import claim_directory
from tests.engine.browser import needs_chromium, run_chromium, visit
from tests.engine.command import assert_one_line
from tests.engine.synthetic_runs import SEVEN_ROLES, matrix, write_run

# Every character that HTML, JSON in HTML, SVG, CSS or TeX could take for something else.
MALICIOUS = "</script><script>wrong.push('xss')</script><img src=x onerror=wrong.push('img')>&\"'$\\frac{<!--]]>\u2028"
MEGABYTE = 1_000_000
DRAWN = [f"model.layers.{layer}.o.weight" for layer in range(3)]  # one by one
FIRST_CELLS = "[...document.querySelectorAll('#matrices-table tbody tr')].map((row) => row.cells[0].textContent)"


class Page(html.parser.HTMLParser):
    """The elements of a page, with their text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def small_model(layers=3, roles=("q", "o"), **changes):
    return [matrix(role, layer, **changes) for layer in range(layers) for role in roles]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = [*small_model(4, ("q", "o", "up")), matrix("embed", None, name="embed.weight")]
    return write_run(tmp_path_factory.mktemp("runs") / "run", rows, skipped=[("norm.weight", "not a matrix (1-D)")])


@pytest.fixture(scope="module")
def page(run):
    return write_report(run, matrices=DRAWN)


class TestContents:
    def test_everything_that_the_issue_of_a_report_asks_for_is_there(self, run, page):
        found = Page(page.read_text())
        for plot in (
            "scaling",
            "alpha",
            "nf",
            "rotation",
            "overlap",
            "principal_angles",
            "drift_budget",
            "coordination",
        ):
            assert plot in found.ids
        for sentence in run.summary()["reading"]:
            assert " ".join(sentence.split()) in found.text
        for section in ("reading", "matrix-section", "table-section", "skipped-section", "how-section"):
            assert section in found.ids
        assert "not a matrix" in found.text and "norm.weight" in found.text
        assert "0" * 64 in found.text and "2025-01-01T00:00:00Z" in found.text  # fingerprint, when it was run

    def test_the_page_needs_nothing_from_elsewhere(self, page):
        found = Page(page.read_text())
        for tag, attributes in found.elements:
            assert tag not in ("link", "iframe", "object", "embed", "base"), tag
            for name in ("src", "href", "xlink:href"):
                value = attributes.get(name) or "#"
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
        assert not re.search(r"url\((?!#)|@import|https?:", page.read_text())

    def test_ids_are_unique(self, page):
        ids = Page(page.read_text()).ids
        assert len(ids) == len(set(ids))

    def test_the_table_holds_the_numbers_of_the_run(self, run, page):
        data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
        frame = run.frame()
        keys = [column["key"] for column in data["columns"]]
        assert keys == list(frame.columns)
        for key in ("drift", "nf", "alpha", "coordination_z"):
            np.testing.assert_allclose(data["values"][keys.index(key)], frame[key], rtol=1e-4)
        patterns = [pattern.split("\0") for pattern in data["patterns"]]
        for (pattern, *numbers), name in zip(data["values"][0], frame["name"], strict=True):
            pieces = patterns[pattern]
            rebuilt = pieces[0] + "".join(f"{n}{piece}" for n, piece in zip(numbers, pieces[1:], strict=True))
            assert rebuilt == name

    def test_the_same_run_gives_the_same_page(self, run, page):
        assert render_report(run, matrices=DRAWN) == page.read_text()

    def test_matrices_that_are_asked_for_are_drawn(self, run):
        name = "model.layers.2.q.weight"
        found = Page(render_report(run, matrices=[name, name]))
        assert [i for i in found.ids if re.fullmatch(r"matrix-\d+", i)] == ["matrix-0"]
        assert name in found.texts
        with pytest.raises(polarax.UsageError, match=r"^The run has no matrix 'nothing'\.$"):
            render_report(run, matrices=["nothing"])


class TestKindsOfRuns:
    @pytest.mark.parametrize(
        ("rows", "options"),
        [
            ([matrix()], {}),
            (small_model(status="unchanged", drift=0.0, nf=0.0, coordination=np.nan, budget_scaling=np.nan), {}),
            (small_model(), {"groups": ("change",), "arrays": False}),
            (small_model(), {"groups": ("scaling",), "arrays": False}),
            (small_model(), {"groups": ("rotation",)}),
            (small_model(), {"groups": ("budget", "overlap")}),
            (small_model(), {"finished": False}),
            ([], {"finished": False}),
            ([matrix("other", None, name=f"blocks.{i}.weight") for i in range(3)], {}),
            ([matrix("embed", None)], {}),
            ([*small_model(), matrix("v", 0, status="rank 3 of 64 in post")], {}),
        ],
        ids="one unchanged change scaling rotation budget interrupted empty other embed deficient".split(),
    )
    def test_it_can_be_rendered(self, tmp_path, rows, options):
        run = write_run(tmp_path / "run", rows, **options)
        found = Page(render_report(run, matrices=[row["name"] for row in rows][:1]))
        assert "how-section" in found.ids
        assert ("interrupted" in found.text) == (not options.get("finished", True))
        assert run._repr_html_().count("<tr>") == 1 + len({row["role"] for row in rows})

    def test_rows_of_nan(self, tmp_path):
        nan = dict.fromkeys(
            ("drift", "alpha", "nf", "nf_null", "coordination", "budget_scaling", "control_reach"), np.nan
        )
        broken = matrix("o", 1, status="not finite: 3 in post", control="", **nan)
        run = write_run(tmp_path / "run", [*small_model(), broken | {"name": "broken"}])
        text = render_report(run, matrices=["broken"])
        assert "NaN" not in re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
        assert "not finite: 3 in post" in Page(text).text

    def test_a_killed_run_whose_summary_was_never_written(self, tmp_path, small):
        run = polarax.compare(small.base, small.post, tmp_path / "run", progress=False)
        (run.path / "summary.json").unlink()
        description = json.loads((run.path / "run.json").read_text()) | {"state": "running"}
        (run.path / "run.json").write_text(json.dumps(description))
        assert "interrupted" in Page(render_report(polarax.Run.open(run.path))).text


class TestChoice:
    def test_those_outside_their_controls_come_first(self, tmp_path):
        rows = small_model(4, SEVEN_ROLES)
        rows[9] |= {"coordination": 0.4, "coordination_z": 100.0}
        rows[17] |= {"nf_excess": 3.0, "nf_z": 50.0, "control_reach": 0.5}
        rows[18] |= {"nf_excess": 5.0, "nf_z": 50.0, "control_reach": 5.0}  # rough: proves nothing
        rows[20] |= {"coordination": 0.9, "coordination_z": 1.0}  # a small matrix: within its control
        chosen = choose_matrices(write_run(tmp_path / "run", rows).frame())
        assert chosen[:2] == [rows[9]["name"], rows[17]["name"]]
        assert {name.split(".")[3] for name in chosen} == set(SEVEN_ROLES) and len(chosen) <= 10

    def test_a_z_against_the_changes_own_spectrum_is_the_one_that_counts(self, tmp_path):
        rows = small_model(4)
        rows[3] |= {"coordination": 0.4, "coordination_z": 100.0}
        frame = write_run(tmp_path / "run", rows).frame().assign(coordination_spectrum_z=1.0)
        assert choose_matrices(frame) == choose_matrices(frame.assign(coordination=0.0))


class TestUntrustedText:
    def test_names_reasons_and_places_are_text(self, tmp_path):
        rows = [matrix(name=MALICIOUS), matrix("other", None, name=f"2{MALICIOUS}", dtype_base=MALICIOUS)]
        run = write_run(tmp_path / "run", rows, base=MALICIOUS, skipped=[(MALICIOUS, MALICIOUS)])
        text = render_report(run)
        found = Page(text)
        assert [tag for tag, _ in found.elements].count("script") == 2
        assert all(attributes.get("src") != "x" for _, attributes in found.elements)
        assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
        assert MALICIOUS in found.texts  # and it can be read
        assert "<img" not in run._repr_html_() and "<script" not in run._repr_html_()

    def test_json_cannot_end_its_element(self):
        text = script_json({"a": "</script><!--<script>&\u2028", "b": float("nan")})
        assert not set("<>&\u2028") & set(text)
        assert json.loads(text) == {"a": "</script><!--<script>&\u2028", "b": None}

    @pytest.mark.parametrize("name", ["a.007.b", "0.1.2", "12345678901234567890", "x\0y", "٣.b", "a.00", ""])
    def test_names_survive_their_packing(self, tmp_path, name):
        frame = write_run(tmp_path / "run", [matrix(name=name or " ")]).frame()
        data = table_data(frame)
        pattern, *numbers = data["values"][0][0]
        pieces = data["patterns"][pattern].split("\0")
        rebuilt = pieces[0] + "".join(f"{n}{piece}" for n, piece in zip(numbers, pieces[1:], strict=True))
        assert rebuilt == (name or " ").replace("\0", "\N{REPLACEMENT CHARACTER}")


class TestSize:
    def test_eighty_layers_of_seven_roles(self, tmp_path):
        run = write_run(tmp_path / "run", small_model(80, SEVEN_ROLES))
        assert write_report(run).stat().st_size < 4 * MEGABYTE

    def test_layers_of_many_experts(self, tmp_path):
        experts = [matrix(role, layer, e) for layer in range(4) for role in ("gate", "up", "down") for e in range(256)]
        run = write_run(tmp_path / "run", [*small_model(4, "qkvo"), *experts])
        text = render_report(run, matrices=["model.layers.0.q.weight"])
        assert len(text.encode()) < 4 * MEGABYTE
        assert "10% to 90% of a layer" in text  # bands in place of 256 lines

    def test_more_rows_than_a_page_takes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("polarax.report.table_data.MOST_ROWS", 5)
        frame = write_run(tmp_path / "run", small_model(10)).frame()
        data = table_data(frame)
        drift = data["values"][[column["key"] for column in data["columns"]].index("drift")]
        assert data["matrices"] == 20
        np.testing.assert_allclose(sorted(drift), np.sort(frame["drift"])[-5:], rtol=1e-4)


class TestCommand:
    def test_report_writes_the_page_and_the_pictures(self, cli, tmp_path):
        run = write_run(tmp_path / "run", small_model())
        done = cli("report", f"--run={run.path}")
        assert done.code == 0 and done.out.endswith(f"Report: {run.path / 'report.html'}\n")
        for ending in ("png", "svg"):
            assert (run.path / "plots" / f"drift_budget.{ending}").stat().st_size > 1000
        assert not list(run.path.rglob("*.partial"))

    def test_without_pictures(self, cli, tmp_path):
        run = write_run(tmp_path / "run", small_model())
        assert cli("report", f"--run={run.path}", "--noplots", "--matrix=model.layers.1.o.weight").code == 0
        assert not (run.path / "plots").exists()
        assert "model.layers.1.o.weight" in Page((run.path / "report.html").read_text()).texts

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ((), "--run is missing"),
            (("--run=nowhere",), "nowhere does not exist"),
            (("--run={run}", "--matrix=x"), "The run has no matrix 'x'."),
        ],
    )
    def test_bad_input_is_one_line(self, cli, tmp_path, flags, words):
        run = write_run(tmp_path / "run", [matrix()])
        assert_one_line(cli("report", *(flag.format(run=run.path) for flag in flags)), words)

    @pytest.mark.parametrize(("package", "extra"), [("jinja2", "report"), ("matplotlib", "plot")])
    def test_a_missing_package_is_one_line(self, cli, tmp_path, monkeypatch, package, extra):
        monkeypatch.setitem(sys.modules, package, None)
        run = write_run(tmp_path / "run", [matrix()])
        assert_one_line(cli("report", f"--run={run.path}", "--noplots"), f"pip install 'polarax[{extra}]'")

    def test_a_page_that_cannot_be_written_is_one_line(self, cli, tmp_path):
        run = write_run(tmp_path / "run", [matrix()])
        (run.path / "report.html.partial").mkdir()
        assert_one_line(cli("report", f"--run={run.path}", "--noplots"), "Cannot write the run", code=1)

    def test_the_page_goes_with_the_run_that_is_replaced(self, tmp_path):
        run = write_run(tmp_path / "run", [matrix()])
        write_report(run)
        claim_directory(run.path, {}, overwrite=True)
        assert not list(run.path.rglob("*.html"))


@needs_chromium
@pytest.mark.slow
class TestInABrowser:
    def test_it_loads_without_a_word_of_complaint(self, page, tmp_path):
        seen = visit(page, tmp_path, "return document.querySelectorAll('figure svg').length")
        assert seen.wrong == [] and "CONSOLE" not in seen.log
        assert seen.found > 8

    def test_the_table_sorts(self, run, page, tmp_path):
        script = """
            const cells = () => ROWS;
            const click = (column) => document.querySelector(`button[data-column="${column}"]`).click();
            const found = [cells()];
            for (const column of ["nf", "nf", "name"]) { click(column); found.push(cells()); }
            found.push(document.querySelector("th[aria-sort=ascending]").textContent);
            return found;
        """
        seen = visit(page, tmp_path, script.replace("ROWS", FIRST_CELLS))
        frame = run.frame()
        by_nf = frame.sort_values("nf", kind="stable")["name"].tolist()
        first, falling, rising, by_name, sorted_by = seen.found
        assert first == frame["name"].tolist()
        assert falling == by_nf[::-1] and rising == by_nf
        assert by_name == sorted(frame["name"]) and sorted_by == "name ↑"
        assert seen.wrong == []

    def test_the_table_filters_and_changes_its_columns(self, run, page, tmp_path):
        script = """
            const names = () => ROWS;
            const set = (id, value, event) => {
              const input = document.getElementById(id);
              if (input.type === "checkbox") input.checked = value; else input.value = value;
              input.dispatchEvent(new Event(event));
            };
            const found = [];
            set("filter-text", "LAYERS.2 weight", "input");
            found.push(names(), document.getElementById("count").textContent);
            set("filter-text", "", "input");
            set("filter-role", "o", "change");
            found.push(names());
            set("filter-role", "", "change");
            set("filter-flagged", true, "change");
            found.push(names());
            set("column-group", "budget", "change");
            found.push([...document.querySelectorAll("#matrices-table thead button")].map((b) => b.dataset.column));
            return found;
        """
        by_text, count, by_role, flagged, columns = visit(page, tmp_path, script.replace("ROWS", FIRST_CELLS)).found
        frame = run.frame()
        assert by_text == [name for name in frame["name"] if "layers.2" in name] and count == f"3 of {len(frame)}"
        assert by_role == frame.loc[frame["role"] == "o", "name"].tolist()
        beware = (frame["rounding_share"] > 0.5) | (frame["control_reach"] > 1)
        assert flagged == frame.loc[beware, "name"].tolist() and 0 < len(flagged) < len(frame)
        assert columns == ["name", *polarax.metrics.GROUPS["budget"]]

    def test_another_matrix_can_be_chosen(self, page, tmp_path):
        script = """
            const cards = [...document.querySelectorAll(".matrix")];
            const shown = () => cards.filter((card) => card.offsetHeight).map((card) => card.id);
            const choice = document.getElementById("matrix-choice");
            const before = shown();
            choice.value = "2";
            choice.dispatchEvent(new Event("change"));
            return [before, shown()];
        """
        assert visit(page, tmp_path, script).found == [["matrix-0"], ["matrix-2"]]

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_text_stands_out_in_light_and_dark(self, page, tmp_path, dark):
        """WCAG 2.1, 1.4.3: a contrast of 4.5 at least, of what people read and of the lines' colours 3 (1.4.11)."""
        script = """
            const colour = (element, what) => getComputedStyle(element)[what].match(/[\\d.]+/g).slice(0, 3).map(Number);
            const probe = (variable) => {
              const made = document.createElement("i");
              made.style.color = `var(${variable})`;
              document.body.append(made);
              return colour(made, "color");
            };
            return {
              paper: colour(document.body, "backgroundColor"), ink: colour(document.body, "color"),
              label: colour(document.querySelector("figure svg text"), "fill"),
              muted: probe("--muted"), blue: probe("--blue"), vermilion: probe("--vermilion"),
            };
        """
        colours = visit(page, tmp_path, script, dark=dark).found
        paper = luminance(colours.pop("paper"))
        assert (paper < 0.05) == dark
        for name, colour in colours.items():
            bright, dim = sorted([luminance(colour), paper], reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= (4.5 if name in ("ink", "label", "muted") else 3), name

    def test_malicious_names_do_nothing(self, tmp_path):
        rows = [matrix(name=MALICIOUS), matrix("other", None, name=f"2{MALICIOUS}")]
        run = write_run(tmp_path / "run", rows, base=MALICIOUS, skipped=[(MALICIOUS, MALICIOUS)])
        seen = visit(write_report(run), tmp_path, f"return {FIRST_CELLS}")
        assert seen.wrong == []
        assert seen.found == [MALICIOUS, f"2{MALICIOUS}"]

    def test_the_policy_of_the_page_stops_a_script_that_got_in(self, page, tmp_path):
        infected = tmp_path / "infected.html"
        infected.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'taken'</script>"))
        seen = visit(infected, tmp_path, "return document.title")
        assert seen.found != "taken" and any("policy: script-src" in what for what in seen.wrong)

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_a_screenshot_has_the_colours_of_the_page(self, page, tmp_path, dark):
        picture = tmp_path / "shot.png"
        run_chromium(page, tmp_path, f"--screenshot={picture}", "--window-size=1000,3000", dark=dark)
        pixels = (255 * imread(picture)[..., :3]).astype(int)
        assert (pixels[0, 0].max() < 60) == dark
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100  # heat maps among them

    def test_a_large_model_opens_fast(self, tmp_path):
        run = write_run(tmp_path / "run", small_model(80, SEVEN_ROLES))
        page = write_report(run, matrices=["model.layers.0.q.weight"])
        seen = visit(page, tmp_path, "return performance.now()")
        assert seen.wrong == [] and seen.found < 20_000  # milliseconds, on a machine that does other things too


def luminance(rgb):
    """Relative luminance of WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
