"""Two result files side by side: which times and errors changed by more than their spread."""

import os

from benchmarks.report import figures
from benchmarks.report.page import seconds, table
from benchmarks.report.results import Results, read

# A change of time below this is not shown: quartiles of a few rounds understate the noise.
_LEAST_CHANGE = 0.05
# Errors move by small factors with the order of summation.
_LEAST_ERROR_FACTOR = 2.0
# Errors below this many eps of the largest value, or this far below the targets, are all the same.
_ERROR_KEYS = {"value_error_of_largest": 10.0, "target": 0.1, "nf_error": 1e-8}


def compare_files(old: str | os.PathLike, new: str | os.PathLike) -> str:
    """The comparison as Markdown.

    Raises:
        ResultsError: One of them is not a results file.
    """
    return comparison(read(old), read(new))


def comparison(old: Results, new: Results) -> str:
    """Times, ratios to polarax, exponents and errors of the two runs, where both have them."""
    return "\n".join(
        [
            "# Comparison of benchmark results",
            "",
            *_differences(old, new),
            _times(old, new),
            _errors(old, new),
            _only_in_one(old, new),
        ]
    )


def _differences(old, new):
    """Lines that say in what the two runs differ: times of different machines prove nothing."""
    lines = [f"- old: {old.started}, `{old.command}`", f"- new: {new.started}, `{new.command}`"]
    for key in sorted({*old.environment, *new.environment}):
        before, after = old.environment.get(key), new.environment.get(key)
        if before == after:
            continue
        if key == "versions":
            names = sorted({*before, *after})
            before, after = (
                {name: side.get(name) for name in names if old_new[0].get(name) != old_new[1].get(name)}
                for side, old_new in ((before, (before, after)), (after, (before, after)))
            )
        lines.append(f"- **{key} differs**: {before} and {after}")
    for key in ("threads", "shrink", "short", "layers"):
        if old.options.get(key) != new.options.get(key):
            lines.append(f"- **--{key} differs**: {old.options.get(key)} and {new.options.get(key)}")
    lines += ["", "A change of time also shows in the ratio to the case's reference if it is real.", ""]
    return lines


def _times(old, new):
    before, after = _by_key(figures.timed(old.records)), _by_key(figures.timed(new.records))
    cases_before, cases_after = dict(figures.groups(old.records)), dict(figures.groups(new.records))
    rows, unchanged = [], 0
    for key in [key for key in after if key in before]:
        one, two = before[key], after[key]
        change = figures.median_seconds(two) / figures.median_seconds(one)
        noise = max(figures.spread(one), figures.spread(two), _LEAST_CHANGE)
        if abs(change - 1) <= noise:
            unchanged += 1
            continue
        ratios = [
            figures.ratio_to_reference(record, cases[record["case"]])
            for record, cases in ((one, cases_before), (two, cases_after))
        ]
        rows.append(
            (
                f"{key[0]}: {key[1]}",
                key[2],
                seconds(figures.median_seconds(one)),
                seconds(figures.median_seconds(two)),
                f"{change:.2f}",
                " to ".join(f"{own.median:.2f}" for own in ratios if own is not None),
            )
        )
    rows.sort(key=lambda row: float(row[4]))
    header = ("times that changed", "contestant", "old", "new", "new / old", "ratio to the reference")
    text = f"{unchanged} times are within their spread, or within {100 * _LEAST_CHANGE:.0f}%.\n"
    return text + (f"\n{table(header, rows)}" if rows else "")


def _errors(old, new):
    before = _by_key(figures.of_suite(old.records, "accuracy"))
    after = _by_key(figures.of_suite(new.records, "accuracy"))
    rows, unchanged = [], 0
    for key in [key for key in after if key in before]:
        for name, floor in _ERROR_KEYS.items():
            if name not in before[key] or name not in after[key]:
                continue
            one, two = before[key][name], after[key][name]
            if _alike(one, two, floor):
                unchanged += 1
            else:
                cells = ["not a number" if value is None else f"{value:.2g}" for value in (one, two)]
                rows.append((key[1], key[2], name, *cells))
    header = ("errors that changed", "contestant", "which", "old", "new")
    text = f"{unchanged} errors changed by less than {_LEAST_ERROR_FACTOR:g} times.\n"
    return text + (f"\n{table(header, rows)}" if rows else "")


def _alike(one, two, floor):
    if one is None or two is None:
        return one is two
    one, two = max(one, floor), max(two, floor)
    return max(one, two) <= _LEAST_ERROR_FACTOR * min(one, two)


def _only_in_one(old, new):
    before, after = _by_key(old.records), _by_key(new.records)
    lines = []
    for which, own, other in (("old", before, after), ("new", after, before)):
        alone = [key for key in own if key not in other]
        if alone:
            shown = "; ".join(f"{case}, {name}" for _, case, name, *_ in alone[:5])
            rest = f"; and {len(alone) - 5} more" if len(alone) > 5 else ""
            lines.append(f"Only in the {which} file: {shown}{rest}.")
    return "\n".join(lines)


def _by_key(records):
    return {
        (record["suite"], record["case"], record["contestant"], record.get("what", "")): record for record in records
    }
