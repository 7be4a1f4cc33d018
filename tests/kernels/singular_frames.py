"""What numpy says of a pair, by full SVDs in float64: the reference of alignment, budget and overlap."""

from typing import NamedTuple

import numpy as np

from tests.kernels import matrices


class Reference(NamedTuple):
    """Two thin SVDs cut to the ranks, and the change between the matrices."""

    u_base: np.ndarray
    s_base: np.ndarray
    v_base: np.ndarray
    u_post: np.ndarray
    s_post: np.ndarray
    v_post: np.ndarray
    change: np.ndarray

    @property
    def left(self) -> np.ndarray:
        return self.u_base.T @ self.u_post

    @property
    def right(self) -> np.ndarray:
        return self.v_base.T @ self.v_post

    @property
    def in_frame(self) -> np.ndarray:
        return self.u_base.T @ self.change @ self.v_base


def _cut_svd(x: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(s > tolerance * s[0]))
    return u[:, :rank], s[:rank], vt[:rank].T


def reference(base: np.ndarray, post: np.ndarray, tolerance: float = 1e-9) -> Reference:
    """Singular values below `tolerance` s_1 count as zero."""
    base, post = base.astype(np.float64), post.astype(np.float64)
    return Reference(*_cut_svd(base, tolerance), *_cut_svd(post, tolerance), post - base)


def nf(pair: Reference) -> float:
    """||Q_U^T Q_V - I||_F / sqrt(r), as He and Cao define it; r is the rank of the post."""
    rank = pair.s_post.size
    return np.linalg.norm(pair.left.T @ pair.right - np.eye(rank)) / np.sqrt(rank)


def first_order_nf(pair: Reference) -> float:
    """||O||_F / sqrt(r), O_ij = (E_ij - E_ji) / (s_i + s_j)."""
    e, s = pair.in_frame, pair.s_base
    return np.linalg.norm((e - e.T) / (s[:, None] + s[None, :])) / np.sqrt(s.size)


def budget(pair: Reference) -> dict[str, float]:
    """Shares of ||D||_F^2, by forming every one of the four parts of D in full."""
    e, d = pair.in_frame, pair.change
    symmetric, skew, diagonal = (e + e.T) / 2, (e - e.T) / 2, np.diag(np.diag(e))
    parts = {
        "scaling": pair.u_base @ diagonal @ pair.v_base.T,
        "coordinated": pair.u_base @ (symmetric - diagonal) @ pair.v_base.T,
        "discordant": pair.u_base @ skew @ pair.v_base.T,
        "outside": d - pair.u_base @ e @ pair.v_base.T,
    }
    return {name: np.linalg.norm(part) ** 2 / np.linalg.norm(d) ** 2 for name, part in parts.items()}


def rotation(size: int, angle: float, seed: int = 0) -> np.ndarray:
    """A rotation exp(K) with a random skew K of spectral norm `angle`."""
    k = matrices.generator("rotation", size, seed).standard_normal((size, size))
    k = k - k.T
    values, vectors = np.linalg.eigh(1j * k)  # i K is Hermitian
    values *= angle / np.max(np.abs(values))
    return np.real((vectors * np.exp(-1j * values)) @ vectors.conj().T)
