"""How much of two checkpoints is compared, and what became of the rest."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_DIGITS = re.compile(r"[0-9]+")
_NEAREST = 5  # names that are listed
_CONSIDERED = 200  # names of either side that they are chosen from
_LENGTH = 200  # characters of a name that are looked at
# Kinds of reason that begin alike and go on with a name.
_KINDS = {
    "tied": "tied",
    "unsupported dtype": "unsupported dtype",
    "quantised": "quantised",
    "part of": "part of an adapter that is not added",
    "LoRA factor of": "LoRA factors whose weight is not there",
    "several trained copies of": "several trained copies, of which none is chosen",
}


class LeftOut(NamedTuple):
    """What is not compared for one kind of reason."""

    tensors: int
    weights: int  # numbers in them


class SideCoverage(NamedTuple):
    """What is compared of one checkpoint, the state of an optimiser aside."""

    tensors: int
    compared_tensors: int  # of which at least one matrix is
    weights: int  # numbers in all tensors
    compared_weights: int
    matrix_weights: int  # numbers in its matrices
    unpaired_weights: int  # in those that have no partner, or one of another shape
    layers: int | None  # as far as the names tell
    left_out: Mapping[str, LeftOut]  # by the kind of reason, in words


class Coverage(NamedTuple):
    """What is compared of two checkpoints."""

    base: SideCoverage
    post: SideCoverage
    matched_by: Mapping[str, int]  # pairs that were found in each way
    notes: tuple[str, ...]  # what is remarkable, a line each
    nearest: tuple[tuple[str, str], ...]  # names without a partner: the base's, and the post's that is most like it
    has_common: bool  # whether any tensor found a partner, or several: be it one that it cannot be compared with


def kind_of(reason: str) -> str:
    """A reason without what is particular to one tensor.

    >>> kind_of("shapes differ: base (2, 3), post (4, 3)"), kind_of("1-D: not a matrix"), kind_of("tied to wte")
    ('shapes differ', '1-D: not a matrix', 'tied')
    >>> kind_of("part of model.layers.0.q_proj.weight: unmerged LoRA factors of unknown scale: ...; only in post")
    'part of an adapter that is not added'
    """
    for beginning, kind in _KINDS.items():
        if reason.startswith(beginning):
            return kind
    head, _, rest = reason.partition(":")
    return head if rest and "matrix" not in rest else reason


class Account:
    """What becomes of the tensors of one checkpoint, added up while they are paired."""

    def __init__(self) -> None:
        self._weights: Counter[str] = Counter()  # of tensors, by name
        self._compared: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = {}  # by kind of reason, then by tensor
        self.matrix_weights = 0
        self.unpaired_weights = 0
        self.layers: set[int] = set()

    def add_tensor(self, name: str, shape: Iterable[int]) -> None:
        """A tensor that is there."""
        self._weights[name] = math.prod(shape)

    def compare(self, name: str, shape: Iterable[int]) -> None:
        """A matrix in a tensor that is compared."""
        self._compared[name] += math.prod(shape)

    def leave_out(self, name: str, reason: str, weights: int | None = None) -> None:
        """A tensor, or some numbers of one, that is not compared."""
        count = self._weights[name] if weights is None else weights
        self._left_out.setdefault(kind_of(reason), Counter())[name] += count

    def close(self) -> SideCoverage:
        """The sums."""
        return SideCoverage(
            tensors=len(self._weights),
            compared_tensors=len(self._compared),
            weights=sum(self._weights.values()),
            compared_weights=sum(min(count, self._weights[name]) for name, count in self._compared.items()),
            matrix_weights=self.matrix_weights,
            unpaired_weights=self.unpaired_weights,
            layers=len(self.layers) or None,
            left_out={kind: LeftOut(len(names), sum(names.values())) for kind, names in self._left_out.items()},
        )


def nearest_names(base: Iterable[str], post: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """For some names of the base, the name of the post that is most like each.

    Names that differ in their numbers alone are one. What is most alike comes first.
    """
    sides = [
        list({_DIGITS.sub("#", name): name for name in reversed(list(names))}.values())[::-1][:_CONSIDERED]
        for names in (base, post)
    ]
    found: list[tuple[float, str, str]] = []
    for name in sides[0]:
        matcher = difflib.SequenceMatcher(b=name[-_LENGTH:], autojunk=False)
        best = (0.0, "")
        for other in sides[1]:
            matcher.set_seq1(other[-_LENGTH:])
            if matcher.real_quick_ratio() > best[0] and matcher.quick_ratio() > best[0]:
                best = max(best, (matcher.ratio(), other))
        if best[1]:
            found.append((best[0], name, best[1]))
    found.sort(key=lambda row: -row[0])
    return tuple((name, other) for _, name, other in found[:_NEAREST])
