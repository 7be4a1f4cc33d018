"""What the last measurement found: arrays over all matrices while training runs, plain numbers by name on the host."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from polarax.errors import UsageError
from polarax.tracking.layout import Label

_ARRAYS = ("step", "full_step", "readings", "leading", "spectra", "finite")  # fields of Metrics that are not static
_NO_LAYER = {"other"}  # roles that say nothing: their matrices go by their names


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=_ARRAYS,
    meta_fields=["labels", "counts"],
)
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Readings of every tracked matrix at one step. A pytree: `jit` takes and gives it."""

    step: jax.Array  # (), int32: of which these are; -1 before the first measurement
    full_step: jax.Array  # (), int32: of which the whole spectra are; -1 before they were taken
    readings: dict[str, jax.Array]  # name -> (matrices,)
    leading: jax.Array | None  # (matrices, k): leading singular values; NaN beyond a matrix's own
    spectra: dict[str, jax.Array]  # shape -> (matrices of that shape, r): whole spectra, where asked for
    finite: jax.Array  # (matrices,), bool
    labels: tuple[Label, ...]  # static: what each matrix is, in the order of all arrays
    counts: tuple[tuple[str, int], ...]  # static: how many of them have each shape, in that order

    def scalars(self, prefix: str = "spectra", *, leading: bool = False) -> dict[str, float]:
        """All readings as a flat dict, as writers of metrics take it: {"spectra/q/layer_03/nf": 0.02, ...}.

        Fetches the arrays to the host, which waits for the step that computes them. Of those that `Tracker.update`
        returns every process has all, and may fetch them alone.

        Args:
            prefix: In front of every name; "" for none.
            leading: With the leading singular values, as s_01, s_02, ...

        Returns:
            Name -> number, NaN where there is none; `step` and `nonfinite` (how many matrices) among them. Empty
            before the first measurement.

        Raises:
            UsageError: They are divided over processes.
        """
        host = self._on_host()
        if host.step < 0:
            return {}
        columns = {name: values for name, values in host.readings.items()}
        if leading and host.leading is not None:
            width = host.leading.shape[1]
            digits = max(2, len(str(width)))
            columns |= {f"s_{place + 1:0{digits}d}": host.leading[:, place] for place in range(width)}
        joint = f"{prefix}/" if prefix else ""
        found = {f"{joint}step": float(host.step), f"{joint}nonfinite": float(np.sum(~host.finite))}
        for index, path in enumerate(paths(self.labels)):
            for name, values in columns.items():
                if not (name.startswith("s_") and np.isnan(values[index]) and host.finite[index]):
                    found[f"{joint}{path}/{name}"] = float(values[index])
        return found

    def nonfinite(self) -> list[str]:
        """Names of the matrices that had NaN or Inf at the last measurement."""
        return [label.name for label, fine in zip(self.labels, self._on_host().finite, strict=True) if not fine]

    def histograms(self, prefix: str = "spectra", bins: int = 50) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Histograms of log10 of the whole spectra, of the last step at which they were taken.

        Returns:
            Name such as "spectra/q/layer_03/log10_singular_values" -> counts (bins,), edges (bins + 1,). Empty unless
            the tracker takes whole spectra (`full_every`) and has done so; without matrices that were not finite.
        """
        host = self._on_host()
        joint = f"{prefix}/" if prefix else ""
        if host.full_step < 0:
            return {}
        found = {}
        for path, values in zip(paths(self.labels), host.each_spectrum(), strict=True):
            positive = values[values > 0]  # NaN is not
            if positive.size:
                found[f"{joint}{path}/log10_singular_values"] = np.histogram(np.log10(positive), bins=bins)
        return found

    def each_spectrum(self) -> Iterator[np.ndarray]:
        """The whole spectra, matrix by matrix, each (r,), in the order of `labels`; none unless they are taken."""
        for key, _ in self.counts if self.spectra else ():
            yield from _fetched(self.spectra[key])

    def _on_host(self) -> "Metrics":
        return _fetched(self)


def register_with_flax() -> None:
    """Lets `flax.serialization` write and read metrics: their arrays, by field; what is static stays as in the target.

    NamedTuples, which the rest of a tracker's state is made of, it knows by itself.
    """
    from flax import serialization

    if not serialization.is_serializable(Metrics):
        serialization.register_serialization_state(Metrics, _to_state_dict, _from_state_dict)


def _to_state_dict(metrics: Metrics) -> dict[str, Any]:
    from flax import serialization

    return {name: serialization.to_state_dict(getattr(metrics, name)) for name in _ARRAYS}


def _from_state_dict(target: Metrics, state: dict[str, Any]) -> Metrics:
    """Metrics with the arrays of `state` and the labels of `target`.

    Raises:
        ValueError: If the state is of something else.
    """
    from flax import serialization

    if set(state) != set(_ARRAYS):
        raise ValueError(
            f"The fields of the state dict and of polarax.tracking.Metrics do not match, got {sorted(state)} and "
            f"{sorted(_ARRAYS)} at path {serialization.current_path()}"
        )
    arrays = {name: serialization.from_state_dict(getattr(target, name), state[name], name=name) for name in _ARRAYS}
    return dataclasses.replace(target, **arrays)


def paths(labels: tuple[Label, ...]) -> list[str]:
    """Names for writers, one for each matrix: role, layer and expert, with the name in the model where that is needed.

    "q/layer_03", "gate/layer_03/expert_012", "embed", "other/encoder.dense" for a role that is unknown. Of matrices
    that would share one, each has its own name behind it.
    """
    layers = _digits(label.layer for label in labels)
    experts = _digits(label.expert for label in labels)
    found = []
    for label in labels:
        parts = [label.role]
        if label.role in _NO_LAYER:
            parts.append(label.name)
        else:
            parts += [f"layer_{label.layer:0{layers}d}"] if label.layer is not None else []
            parts += [f"expert_{label.expert:0{experts}d}"] if label.expert is not None else []
        found.append("/".join(parts))
    repeated = {path for path in found if found.count(path) > 1} if len(set(found)) < len(found) else set()
    return [f"{path}/{label.name}" if path in repeated else path for path, label in zip(found, labels, strict=True)]


def _is_variable(leaf: Any) -> bool:
    """Whether this is one of the boxes that `nnx.Optimizer` puts around the arrays of its state."""
    return hasattr(leaf, "get_value")


def _fetched(tree: Any) -> Any:
    """The arrays of a tree on the host: of those on all processes, this one's own copy."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise UsageError(
                "These metrics are divided over processes, as a state is to which the training step gives a sharding. "
                "Read those that tracker.update returns, which are whole on each, or let the step return "
                "optax.tree.get(state, 'metrics') with the sharding jax.NamedSharding(mesh, jax.P())."
            )
    return jax.tree.map(_plain, jax.device_get(tree), is_leaf=_is_variable)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.get_value() if _is_variable(leaf) else leaf)


def _digits(numbers: Iterable[int | None]) -> int:
    return max(2, len(str(max((number for number in numbers if number is not None), default=0))))
