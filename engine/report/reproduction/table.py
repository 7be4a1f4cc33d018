"""The experiments as tables, for the terminal and the page: each beside what a random change of its size does."""

from collections.abc import Iterator, Mapping
from typing import Any

from polarax.report.table import align_rows

RANDOM_HEADING = "what a random change does"
_NOTE = (
    "drift: of the change from the post; KL: of the next token's distribution from the post's; entropy: of attention; "
    "CKA: of states with the post's, mean over layers."
)


def reproduction_tables(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and table, for the terminal: one for each text, and one of temperatures."""
    for text in content["texts"]:
        yield f"{text['label']} ({text['tokens']:,} tokens)", align_rows(rows_of_text(content, text["label"]), [_NOTE])
    if content["temperature"]["rows"]:
        yield temperature_title(content), align_rows(rows_of_temperature(content), [])


def rows_of_text(content: Mapping[str, Any], label: str) -> list[list[str]]:
    """One row for each experiment on a text, headings first; the post and the base as they are at the top."""
    post, base = (content[side]["texts"][label] for side in ("post", "base"))
    with_cka = "cka" in base
    rows = [["experiment", "drift", *_headings(with_cka), RANDOM_HEADING]]
    rows.append(["post as it is", "-", f"{post['loss']:.4f}", "0", f"{post['entropy']:.3f}", *["1"] * with_cka, "-"])
    rows.append(["base as it is", "-", *_cells(base, with_cka), "-"])
    for row in content["experiments"]:
        random = row["random"]["texts"][label]
        said = ", ".join(
            f"{heading} {cell}" for heading, cell in zip(_headings(with_cka), _cells(random, with_cka), strict=True)
        )
        rows.append([row["name"], f"{row['edit']['drift']:.3%}", *_cells(row["edit"]["texts"][label], with_cka), said])
    return rows


def _headings(with_cka: bool) -> list[str]:
    return ["loss", "KL", "entropy", *["CKA"] * with_cka]


def _cells(numbers: Mapping[str, Any], with_cka: bool) -> list[str]:
    cells = [f"{numbers['loss']:.4f}", f"{numbers['divergence']:.3g}", f"{numbers['entropy']:.3f}"]
    if with_cka:
        cells.append("-" if numbers["cka"] is None else f"{numbers['cka']:.4f}")
    return cells


def temperature_title(content: Mapping[str, Any]) -> str:
    """What the table of temperatures is about."""
    return f"Queries and keys times c, on {content['temperature']['text']}"


def rows_of_temperature(content: Mapping[str, Any]) -> list[list[str]]:
    """One row for each factor, headings first; what a temperature does is beside it where it is something else."""
    temperature = content["temperature"]
    other = [] if temperature["exact"] else ["entropy at that temperature", "its loss"]
    rows = [["c", "temperature 1/c^2", "difference of scores", "entropy", "loss", "KL", *other]]
    for row in temperature["rows"]:
        numbers = row["scaled"]
        cells = [f"{row['c']:g}", f"{1 / row['c'] ** 2:.4g}", f"{row['difference']:.2g}", f"{numbers['entropy']:.3f}"]
        cells += [f"{numbers['loss']:.4f}", f"{numbers['divergence']:.3g}"]
        if other:
            cells += [f"{row['at_temperature'][name]:.4g}" for name in ("entropy", "loss")]
        rows.append(cells)
    return rows
