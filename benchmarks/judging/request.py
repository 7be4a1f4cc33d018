"""What a run was asked for."""

import dataclasses
import hashlib
import pathlib
from typing import Any

PARTS = ("false_alarms", "power")


@dataclasses.dataclass(frozen=True)
class Request:
    """Checked flags. A worker is given it whole."""

    out: pathlib.Path
    pairs: tuple[tuple[str, str], ...]  # base and post
    parts: tuple[str, ...]
    matrices: int  # of each kind of noise
    seeds: int  # of each planted effect at each size
    size: int  # shorter side of a reduced matrix
    seed: int
    limit: float  # seconds that a case may take before its process is ended
    done: frozenset[str] = frozenset()  # labels of the cases that an earlier run has finished

    @property
    def material(self) -> pathlib.Path:
        """Where the spectra of the pairs are kept."""
        return self.out / "spectra.npz"

    def key(self) -> dict[str, Any]:
        """What results must share to be added up: how trials are made, and the code that judges them."""
        return {"pairs": [list(pair) for pair in self.pairs], "size": self.size, "seed": self.seed, "code": code()}


def code() -> str:
    """A digest of polarax's own modules: results of another version are not continued."""
    import polarax

    digest = hashlib.sha256()
    folders = [pathlib.Path(folder) for folder in polarax.__path__]
    for folder in sorted({*folders, *(pathlib.Path(path) for path in _packages())}):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _packages():
    import polarax.kernels
    import polarax.loaders

    return [*polarax.kernels.__path__, *polarax.loaders.__path__]
