"""Which matrices of a first look are worth a full analysis, and the command that does it."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.effects import sizes_of
from polarax.findings.mechanical import tell_apart
from polarax.findings.words import capital, matrices
from polarax.metrics.look import is_first
from polarax.metrics.relation import Relation

# Matrices that one command looks at: more take their time, and what stands out less can be asked for next.
_MOST = 12
# What the entries say of the others is all there is to say.
_MORE_TO_SAY = (Relation.UNRELATED.value, Relation.TURNED.value)


class Closer(NamedTuple):
    """What is to be looked at closer."""

    names: tuple[str, ...]  # the matrices, those that stand out most first
    found: int  # how many stand out at the first look: more than there are names where these are many
    seen: int  # how many stand out of those that were looked at closer
    include: str  # a regular expression that finds these names and no others; "" where there are none
    command: str  # what does it, for a shell; "" where there are none, or the inputs have no path

    @property
    def sentence(self) -> str:
        """What is to be looked at, in words that stand before the command."""
        others = f"Beside {matrices(self.seen)} that {_stand(self.seen)} out in full, " if self.seen else ""
        if not self.names:
            return capital(f"{others}no matrix stands out at the first look.")
        which = "it" if self.found == 1 else "them"
        if len(self.names) < self.found:
            which = f"the {len(self.names)} that stand out most"
        found = f"{others}{matrices(self.found)} {_stand(self.found)} out at the first look."
        if not self.command:  # parameters in memory, or a folder that does not last
            return capital(f"{found} `closer().include` selects {which}.")
        return capital(f"{found} To look closer at {which}, in the same folder:")


def find_closer(frames: Iterable[pd.DataFrame], draws: int, as_typed: Sequence[str] | None, out: str | None) -> Closer:
    """The matrices that stand out, by the size of their effects over what makes them one.

    Args:
        frames: `Run.frame()` of a first look, or of each of several posts or steps.
        draws: How many draws the sampled controls are made of, if the frames have any.
        as_typed: The command of the first look; None where there is none.
        out: Its folder; None where it does not last.
    """
    sizes: dict[str, float] = {}
    seen: set[str] = set()
    for frame in frames:
        standing = _standing_out(frame, draws)
        first = is_first(frame)
        for row, size in standing.items():
            name = frame.at[row, "name"]
            if first[row]:
                sizes[name] = max(size, sizes.get(name, 0.0))
            else:
                seen.add(name)
    names = tuple(sorted(sizes, key=lambda name: -sizes[name])[:_MOST])
    include = f"^({'|'.join(map(re.escape, names))})$" if names else ""
    command = ""
    if names and as_typed is not None and out is not None:
        *words, flag = [*as_typed, f"--out={out}", f"--include={include}"]
        command = " ".join([*map(_quoted, words), _quoted(flag)])
    return Closer(names, len(sizes), len(seen - set(sizes)), include, command)


def _standing_out(frame: pd.DataFrame, draws: int) -> Mapping[int, float]:
    """Row -> how many times its effect is the least that counts; of strangers, less than any effect."""
    strange = frame.index[frame["relation"].isin(_MORE_TO_SAY)] if "relation" in frame else []
    standing = dict.fromkeys(strange, 0.0)
    effects = tell_apart(frame, draws).effects
    for row, size in zip(effects["row"], sizes_of(effects), strict=True):
        standing[row] = max(standing.get(row, 0.0), size if np.isfinite(size) else 0.0)
    return standing


def _quoted(word):
    """A word for a shell; of a flag its value alone in quotes."""
    name, equals, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and word.startswith("--") else shlex.quote(word)


def _stand(count):
    return "stands" if count == 1 else "stand"
