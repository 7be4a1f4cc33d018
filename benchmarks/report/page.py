"""The Markdown page of a run."""

from collections.abc import Iterable, Sequence

from benchmarks.cases import Record
from benchmarks.report import figures
from benchmarks.report.results import Results

# LAPACK's threshold for the ratios of its driver tests.
_THRESHOLD = 50.0
# A load above this share of the cores before anything was started: somebody else is at work.
_QUIET = 0.3


def page(results: Results, plots: Sequence[str] = ()) -> str:
    """The whole page, its sections in the order of reading; plots are file names beside it."""
    sections = [
        _head(results),
        _targets(results.records),
        _floor(results.records),
        _accuracy(results.records),
        _layers(results.records),
        _timed(results.records, "pairs", "Whole analysis of a pair"),
        _pair_floors(results.records),
        _timed(results.records, "kernels", "Kernels alone"),
        _timed(results.records, "batch", "Stacks of small matrices"),
        _growth(results.records),
        _timed(results.records, "reading", "Reading and memory"),
        _timed(results.records, "compiling", "Compiling"),
        _timed(results.records, "tracking", "Tracking a training loop"),
        _tracking(results.records),
        _problems(results),
        *(f"![{name}]({name})\n" for name in plots),
    ]
    return "\n".join(section for section in sections if section)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are right-aligned."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join([" --- ", *[" ---: "] * (len(header) - 1)]) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def seconds(value: float | None) -> str:
    """A time with three digits and its unit; nothing for None."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "not a number"
    return f"{value:.{digits}g}"


def _head(results):
    environment, options = results.environment, results.options
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        "# Benchmark results",
        "",
        f"    {results.command}",
        "",
        f"- {results.started}, {results.seconds:.0f} s",
        f"- {environment['backend']}: {', '.join(environment['devices'])}; "
        f"{environment['processor']}, {environment['cores']} cores, {options['threads']} threads, "
        f"{environment['memory_gib']} GiB, {environment['platform']}",
        f"- {versions}",
    ]
    for pool in environment["blas"]:
        details = " ".join(str(value) for key, value in pool.items() if key != "file")
        lines.append(f"- {pool['file']}: {details}")
    for name, value in environment["variables"].items():
        lines.append(f"- {name}={value}")
    before = results.load[0]
    if before is not None and before > _QUIET * environment["cores"]:
        lines.append(
            f"- **The machine was busy** (load average {before:.1f} before the run): "
            "times are too long, ratios are rough."
        )
    if options["shrink"] != 1:
        lines.append(f"- **Every dimension is divided by {options['shrink']}**: a trial.")
    lines += [
        "",
        "Times are medians of rounds in which contestants took turns; the spread is the "
        "interquartile range over the median; ratios are medians over rounds. Rates count nominal "
        "operations (polarax.planning.comparison_plan), the same for everybody, and so can pass the floor.",
        "",
    ]
    return "\n".join(lines)


def _targets(records):
    rows = [
        (
            verdict.target,
            verdict.wanted,
            verdict.measured,
            {True: "met", False: "missed", None: ""}[verdict.met],
        )
        for verdict in figures.verdicts(records)
    ]
    header = ("target", "wanted", "measured", "")
    return f"## Targets\n\n{table(header, rows)}" if rows else ""


def _floor(records):
    own = figures.timed(figures.of_suite(records, "floor"))
    if not own:
        return ""
    rows = []
    for record in own:
        amount = record.get("operations") or record["bytes"]
        rate = amount / figures.median_seconds(record) / 1e9
        unit = "GFLOP/s" if record.get("operations") else "GB/s"
        median = figures.median_seconds(record)
        rows.append((record["case"], record["contestant"], seconds(median), _spread(record), f"{rate:.4g} {unit}"))
    header = ("floor", "library", "median", "spread", "rate")
    return f"## Floor\n\n{table(header, rows)}"


def _accuracy(records):
    own = figures.of_suite(records, "accuracy")
    text = ""
    drivers = [record for record in own if record["what"] in ("svd", "values", "nf")]
    if drivers:
        rows = [_driver_row(*key, of_one) for key, of_one in _by_contestant(drivers)]
        header = (
            "SVD over all classes", "dtype", "matrices", "reconstruction", "U", "V", "not ordered",
            "error of s / s_1, eps", "the same, values alone", "relative error of nf", "failed",
        )  # fmt: skip
        text += (
            "## Accuracy\n\nWorst case of each; ratios as in LAPACK's driver tests, in units of "
            f"max(m, n) eps, where {_THRESHOLD:g} is the threshold.\n\n{table(header, rows)}\n"
        )
    pairs = [record for record in own if record["what"] == "pair"]
    if pairs:
        rows = []
        for (name, _), of_one in _by_contestant(pairs):
            for stored, of_stored in figures.groups(of_one, "stored"):
                cells = [_worst_cell(of_stored, key) for key in ("target", "value_error", "nf_error")]
                rows.append((name, stored, *cells))
        header = (
            "language model weights", "stored as", "error of s over the target", "relative error of s",
            "relative error of nf",
        )  # fmt: skip
        text += f"Whole analysis of stored weights, worst case:\n\n{table(header, rows)}"
    return text


def _by_contestant(records):
    found = {}
    for record in records:
        found.setdefault((record["contestant"], record["dtype"]), []).append(record)
    return found.items()


def _driver_row(name, dtype, records):
    svd = [record for record in records if record["what"] == "svd"]
    failed = sum("error" in record for record in records)
    disordered = sum(record.get("ordered") is False for record in svd)
    cells = [_worst_cell(svd, key) for key in ("reconstruction", "left", "right")]
    values = [record for record in records if record["what"] == "values"]
    spectra = [_worst_cell(kind, "value_error_of_largest") for kind in (svd, values)]
    matrices = len({record["case"] for record in records})
    nf = _worst_cell(records, "nf_error")
    return (
        name, dtype, str(matrices), *cells, str(disordered) if svd else "", *spectra, nf,
        str(failed) if failed else "",
    )  # fmt: skip


def _worst_cell(records, key):
    found = figures.worst(records, key)
    if found:
        return f"{_number(found[0])} ({found[1]})"
    return "failed" if records and all("error" in record for record in records) else ""


def _layers(records):
    totals = figures.layer_totals(records)
    rows = []
    for model, of_model in totals.items():
        for total in of_model:
            matrices = str(total.measured)
            if total.measured != total.in_layer:
                matrices += f", scaled to {total.in_layer}"
            rows.append((model, total.contestant, matrices, seconds(total.seconds), _ratio(total.ratio)))
    header = ("an average layer", "contestant", "matrices", "seconds", "of polarax's time")
    return f"## One layer, in memory\n\n{table(header, rows)}" if rows else ""


def _timed(records, suite, title):
    peak = figures.peaks(records)
    text = ""
    for case, in_case in figures.groups(figures.of_suite(records, suite)):
        rows = [_timed_row(record, in_case, peak) for record in in_case]
        header = (
            case, "dtype", "median", "spread", "of the first's time", "first run", "compile",
            "GFLOP/s", "of the floor", "GB/s", "peak memory",
        )  # fmt: skip
        keep = [0, *(i for i in range(1, len(header)) if any(row[i] for row in rows))]
        kept = [[row[i] for i in keep] for row in rows]
        text += table([header[i] for i in keep], kept) + "\n"
    return f"## {title}\n\n{text}" if text else ""


def _pair_floors(records):
    lines = [
        f"- {record['rows']} x {record['cols']}, {record['lanes']} side by side: {record['times_floor']:.2f} times the "
        f"floor of {seconds(record['floor_seconds'])} (two eigendecompositions, the eigenvalues of the change, and the "
        "products that cannot be left out)."
        for record in records
        if "times_floor" in record
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _tracking(records):
    lines = [
        f"- {record['case']}: a measurement takes {record['steps_per_measurement']:.2g} steps; every 100 steps "
        f"that adds {_percent(record['share'])} to the loop. The tracker keeps "
        f"{record['state_bytes'] / 2**20:.0f} MiB, of which the copy of the parameters takes "
        f"{record['tracked_bytes'] / 2**20:.0f} MiB."
        for record in records
        if "steps_per_measurement" in record
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _timed_row(record: Record, in_case, peak):
    name = record["contestant"]
    if not record.get("samples"):
        return (f"{name}: {record.get('error') or record.get('left_out')}", *[""] * 10)
    rate = figures.rate(record)
    return (
        name,
        record.get("dtype", ""),
        seconds(figures.median_seconds(record)),
        _spread(record),
        _ratio(figures.ratio_to_reference(record, in_case)),
        seconds(record.get("first_seconds")),
        seconds(record.get("compile_seconds")),
        f"{rate / 1e9:.3g}" if rate else "",
        _percent(figures.share_of_peak(record, peak)),
        f"{record['bytes'] / figures.median_seconds(record) / 1e9:.3g}" if record.get("bytes") else "",
        _memory(record),
    )


def _memory(record):
    if "idle_bytes" in record:
        return f"{record['peak_bytes'] / 2**20:.0f} MiB, {record['idle_bytes'] / 2**20:.0f} MiB of them idle"
    if "peak_bytes" in record:
        return f"{record['peak_bytes'] / 2**20:.0f} MiB"
    if record.get("argument_bytes"):
        planned = record["argument_bytes"] + record["output_bytes"] + record["temporary_bytes"]
        return f"{planned / record['argument_bytes']:.1f} x input"
    return ""


def _growth(records):
    own = [*figures.of_suite(records, "growth"), *figures.of_suite(records, "batch")]
    fits = figures.fits(own)
    rows = []
    for key, points in figures.growth_series(own).items():
        axis, contestant = key
        times = ", ".join(f"{size}: {seconds(taken)}" for size, taken in points)
        fit = fits.get(key)
        exponents = [""] * 3
        if fit:
            spread = _percent(fit.spread) if fit.points > 2 else ""
            exponents = [f"{fit.exponent:.2f}", f"{fit.last:.2f}", spread]
        rows.append((axis, contestant, times, *exponents))
    header = ("time against", "contestant", "median", "exponent", "at the end", "spread of the fit")
    return f"## Growth\n\n{table(header, rows)}" if rows else ""


def _problems(results):
    rows = [(problem.suite, problem.case, problem.what) for problem in results.problems]
    rows += [("peers", name, "left out: not installed") for name in results.options.get("missing", ())]
    header = ("suite", "case", "what")
    return f"## Not measured\n\n{table(header, rows)}" if rows else ""


def _ratio(value):
    if value is None:
        return ""
    if value.low == value.high:
        return f"{value.median:.2f}"
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


def _percent(value):
    return "" if value is None else f"{100 * value:.3g}%"


def _spread(record):
    return _percent(figures.spread(record)) if len(record["samples"]) > 1 else ""
