"""What the metrics of a pair of matrices are read from."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax import kernels
from polarax.kernels.noise_law import (
    LeadingLaw,
    PolarLaw,
    SpectrumColumns,
    SpectrumLaw,
    Spreads,
    ValuesLaw,
    columns_of_law,
    leading_law,
    polar_law,
    spectrum_law,
    spreads_at_any_size,
    values_law,
)
from polarax.kernels.sides import Shape

Readings = dict[str, jax.Array]


class Spectra(NamedTuple):
    """Singular values of base, post and change, descending, (..., r), and the norm of the change, (...)."""

    s_base: jax.Array
    s_post: jax.Array
    s_change: jax.Array | None  # None unless a group needs them
    change_norm: jax.Array


class StoredEntries(NamedTuple):
    """What entries say as they are stored, each (...): sums over base and post, which may be in several places."""

    rounding_base: kernels.Rounding
    rounding_post: kernels.Rounding
    equal: jax.Array  # number of entries that are the same in both

    @classmethod
    def of(cls, base: jax.Array, post: jax.Array) -> "StoredEntries":
        """Those of base and post, (..., m, n), in their stored dtypes."""
        rounding_base, rounding_post = (kernels.rounding_of(x, x.dtype) for x in (base, post))
        return cls(rounding_base, rounding_post, kernels.equal_entries(base, post))


@dataclasses.dataclass(frozen=True)
class MatrixPair:
    """Base and post, decomposed."""

    shape: Shape  # (m, n) of both; m an operand of the program where all metrics are the package's own
    spectra: Spectra
    frames: kernels.Frames | None  # None where no group needs singular vectors
    base: jax.Array | None  # (..., m, n) as it is stored; None but for groups of `Group.stored`
    post: jax.Array | None  # (..., m, n) as it is stored; None likewise
    top_k: int  # leading singular vectors that are compared
    pictures: bool  # whether arrays that are only looked at are kept
    entries: StoredEntries | None = None  # None but for groups of `Group.stored`

    @functools.cached_property
    def control(self) -> kernels.Controls:
        """What an isotropic random change of the same size would show, in closed form."""
        given, law, std = (self.spectra.s_base, self.spectra.change_norm), self._polar_law, self._spreads[0]
        return kernels.closed_form_controls(*given, shape=self.shape, top_k=self.top_k, law=law, std=std)

    @functools.cached_property
    def own_law(self) -> SpectrumLaw | None:
        """The noise law of changes with this one's singular values in random directions; None if they are not known."""
        spectra = self.spectra
        return None if spectra.s_change is None else spectrum_law(spectra.s_base, spectra.s_change, shape=self.shape)

    @functools.cached_property
    def own_spreads(self) -> Spreads | None:
        """Standard deviations over such changes."""
        return None if self.own_law is None else self._spreads[1]

    @functools.cached_property
    def values_null(self) -> ValuesLaw:
        """Where an isotropic random change of the same size puts each singular value of the post."""
        return values_law(self.spectra.s_base, self.spectra.change_norm, shape=self.shape, leading=self.top_k)

    @functools.cached_property
    def spectrum_null(self) -> SpectrumColumns:
        """What is read of the post's spectrum then."""
        spectra = self.spectra
        return columns_of_law(spectra.s_base, spectra.change_norm, self.values_null, shape=self.shape)

    @functools.cached_property
    def _polar_law(self) -> PolarLaw:
        return polar_law(self.spectra.s_base, self.spectra.change_norm, shape=self.shape)

    @functools.cached_property
    def _spreads(self) -> list[Spreads]:
        """Of isotropic noise, and of changes with this one's singular values if they are known."""
        spectra = self.spectra
        found = spreads_at_any_size(
            spectra.s_base,
            spectra.change_norm,
            spectra.s_change,
            shape=self.shape,
            top_k=self.top_k,
            nf=self._polar_law.nf,
            own=self.own_law,
            values=self.values_null,
        )
        return [spreads for spreads, _ in found]

    @functools.cached_property
    def leading_law(self) -> LeadingLaw:
        """What such a change does to the leading values and vectors, at any size."""
        given, values = (self.spectra.s_base, self.spectra.change_norm), self.values_null
        return leading_law(*given, shape=self.shape, k=self.top_k, values=values)

    @property
    def drift(self) -> jax.Array:
        """||D||_F / ||W_base||_F, (...)."""
        return self.spectra.change_norm / kernels.frobenius(self.spectra.s_base[..., None, :])

    @property
    def vectors(self) -> kernels.Frames:
        """The frames, for metrics of groups that need singular vectors."""
        assert self.frames is not None
        return self.frames


def ratio_to(value: jax.Array, unit: jax.Array, change: jax.Array) -> jax.Array:
    """value / unit; NaN where the unit is 0, or nothing changed: one rounding error over another says nothing."""
    return jnp.where((change > 0) & (unit > 0), value / unit, jnp.nan)
