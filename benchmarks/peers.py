"""What a user would run instead: SVDs of both matrices in float32, and the products of their frames.

`script` is the same few lines in torch, numpy and jax.numpy, as someone would type them after
reading the paper; the careful form transposes wide matrices first, for which torch's SVD is several
times faster. As whole programs, reading two safetensors files:

    python -m benchmarks.peers {torch,torch-careful,torch-full,numpy,jnp} BASE POST OUT.csv
"""

import contextlib
import csv
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# Leading singular vectors whose subspaces are compared; the same as polarax.
TOP_K = 16


class Library:
    """An array library that has an SVD. Arrays are the library's own, on the device it computes on.

    This one is numpy, whose SVD computes float32 input in float64 and rounds the result: slower and
    more accurate than the others' float32.
    """

    name = "numpy"  # of the contestant
    scripted = True  # whether users write the whole analysis in it

    def put(self, array: np.ndarray) -> Any:
        """A numpy array (float32, float64 or bfloat16) as this library's, on its device."""
        return array

    def widen(self, x: Any) -> Any:
        """bfloat16 as float32, which is what scripts compute in; other dtypes stay."""
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)

    def identity(self, like: Any) -> Any:
        """The identity of a square matrix's size, dtype and device."""
        return np.eye(len(like), dtype=like.dtype)

    def svd(self, x: Any) -> tuple[Any, Any, Any]:
        """Thin U, s, V^T."""
        return np.linalg.svd(x, full_matrices=False)

    def singular_values(self, x: Any) -> Any:
        """s alone."""
        return np.linalg.svd(x, compute_uv=False)

    def scope(self, x: Any) -> contextlib.AbstractContextManager:
        """Where to compute with x, so that its dtype is kept."""
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Returns when everything asked for has been computed."""


class Scipy(Library):
    """SciPy, with one of LAPACK's two drivers."""

    scripted = False  # its scripts are numpy's

    def __init__(self, driver: str):
        import scipy.linalg

        self.name = f"scipy {driver}"
        self._svd = scipy.linalg.svd
        self._driver = driver

    def svd(self, x):
        return self._svd(x, full_matrices=False, lapack_driver=self._driver, check_finite=False)

    def singular_values(self, x):
        return self._svd(x, compute_uv=False, lapack_driver=self._driver, check_finite=False)


class Torch(Library):
    """torch, on the GPU where it has one."""

    name = "torch"

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def put(self, array):
        if array.dtype.name == "bfloat16":
            tensor = self._torch.from_numpy(array.view(np.int16)).view(self._torch.bfloat16)
        else:
            tensor = self._torch.from_numpy(array)
        tensor = tensor.to(self.device)
        self.wait()
        return tensor

    def widen(self, x):
        return x.float() if x.dtype == self._torch.bfloat16 else x

    def identity(self, like):
        return self._torch.eye(len(like), dtype=like.dtype, device=like.device)

    def svd(self, x):
        return self._torch.linalg.svd(x, full_matrices=False)

    def singular_values(self, x):
        return self._torch.linalg.svdvals(x)

    def wait(self):
        if self.device.type == "cuda":
            self._torch.cuda.synchronize()


class Jnp(Library):
    """jax.numpy, call by call.

    jaxlib's LAPACK calls on CPU can wait for each other for ever when several are in flight (see
    polarax.kernels.sequential), so each SVD is a program of its own and is waited for.
    """

    name = "jnp"

    def __init__(self):
        import jax

        self._jax = jax

    def put(self, array):
        with self.scope(array):
            return self._jax.block_until_ready(self._jax.device_put(array))

    def widen(self, x):
        return x.astype(np.float32) if x.dtype.name == "bfloat16" else x

    def identity(self, like):
        return self._jax.numpy.eye(len(like), dtype=like.dtype)

    def svd(self, x):
        with self.scope(x):
            result = self._jax.numpy.linalg.svd(x, full_matrices=False)
            return self._jax.block_until_ready(result)

    def singular_values(self, x):
        with self.scope(x):
            return self._jax.block_until_ready(self._jax.numpy.linalg.svd(x, compute_uv=False))

    def scope(self, x):
        wide = x.dtype.name == "float64"
        return self._jax.enable_x64(True) if wide else contextlib.nullcontext()


def libraries(peers: Sequence[str], threads: int) -> Iterator[Library]:
    """The libraries of the peers asked for; each is imported here, not before."""
    if "torch" in peers:
        yield Torch(threads)
    if "numpy" in peers:
        yield Library()
    if "scipy" in peers:
        yield from (Scipy("gesdd"), Scipy("gesvd"))
    if "jnp" in peers:
        yield Jnp()


def scripts(peers: Sequence[str], threads: int) -> Iterator[tuple[str, Library, Callable]]:
    """Name, library and function of (base, post) of each script that analyses a whole pair."""
    for library in libraries(peers, threads):
        if library.scripted:
            yield library.name, library, lambda base, post, own=library: script(own, base, post)
        if isinstance(library, Torch):
            yield (
                "torch careful",
                library,
                lambda base, post, own=library: careful_script(own, base, post),
            )
            yield (
                "torch careful, every column",
                library,
                lambda base, post, own=library: full_script(own, base, post),
            )


def script(library: Library, base: Any, post: Any) -> dict[str, Any]:
    """The analysis of one pair: spectra, rotations, nf, drift budget, overlaps.

    Args:
        library: Whose arrays the two are.
        base: (m, n), bfloat16, float32 or float64.
        post: The same.

    Returns:
        s_base, s_post (arrays), nf, budget_scaling, budget_coordinated, budget_discordant,
        budget_outside, overlap_left, overlap_right (floats).
    """
    base, post = library.widen(base), library.widen(post)
    u_base, s_base, vt_base = library.svd(base)
    u_post, s_post, vt_post = library.svd(post)

    q_left = u_base.T @ u_post
    q_right = vt_base @ vt_post.T
    difference = q_left.T @ q_right - library.identity(q_left)
    nf = math.sqrt(float((difference**2).sum()) / len(s_base))

    change = post - base
    total = float((change**2).sum())
    in_frame = u_base.T @ change @ vt_base.T
    diagonal = float((in_frame.diagonal() ** 2).sum())
    symmetric = float((((in_frame + in_frame.T) / 2) ** 2).sum()) - diagonal
    skew = float((((in_frame - in_frame.T) / 2) ** 2).sum())

    k = min(TOP_K, len(s_base))
    readings = {
        "s_base": s_base,
        "s_post": s_post,
        "nf": nf,
        "budget_scaling": diagonal / total,
        "budget_coordinated": symmetric / total,
        "budget_discordant": skew / total,
        "budget_outside": 1 - (diagonal + symmetric + skew) / total,
        "overlap_left": float((q_left[:k, :k] ** 2).sum()) / k,
        "overlap_right": float((q_right[:k, :k] ** 2).sum()) / k,
    }
    library.wait()
    return readings


def careful_script(library: Library, base: Any, post: Any) -> dict[str, Any]:
    """`script` with wide matrices transposed first; left and right are exchanged back."""
    if base.shape[0] >= base.shape[1]:
        return script(library, base, post)
    readings = script(library, base.T, post.T)
    left, right = readings["overlap_left"], readings["overlap_right"]
    return {**readings, "overlap_left": right, "overlap_right": left}


def full_script(library: Library, base: Any, post: Any) -> dict[str, Any]:
    """What polarax measures but for its controls, as careful as `careful_script`: three SVDs, in float32.

    Returns:
        The readings of `script`, and drift, alpha, ratio_cv, nss, cosines of the principal angles, stable and effective
        ranks of base, post and change, fit_alpha and fit_error.
    """
    base, post = library.widen(base), library.widen(post)
    if base.shape[0] < base.shape[1]:
        base, post = base.T, post.T
    u_base, s_base, vt_base = library.svd(base)
    u_post, s_post, vt_post = library.svd(post)
    change = post - base
    s_change = library.singular_values(change)
    q_left, q_right = u_base.T @ u_post, vt_base @ vt_post.T
    diagonal = q_left.diagonal() + q_right.diagonal()
    signs = (diagonal >= 0) * 2.0 - 1.0
    q_left, q_right = q_left * signs, q_right * signs

    total = float((change**2).sum())
    in_frame = u_base.T @ change @ vt_base.T
    scaled = float((in_frame.diagonal() ** 2).sum())
    symmetric = float((((in_frame + in_frame.T) / 2) ** 2).sum()) - scaled
    skew = float((((in_frame - in_frame.T) / 2) ** 2).sum())
    outside = total - scaled - symmetric - skew

    left, cosines, right_t = library.svd(q_left + q_right)
    turn = (left * (cosines > 1e-3)) @ right_t  # 0 where left and right turned to opposite directions
    model = (turn * s_base) @ turn.T
    target = in_frame + library.identity(in_frame) * s_base
    fit_alpha = float((model * target).sum()) / float((model**2).sum())
    missed = float(((target - fit_alpha * model) ** 2).sum()) + max(outside, 0.0)

    norm_base, norm_post = math.sqrt(float((s_base**2).sum())), math.sqrt(float((s_post**2).sum()))
    ratios = s_post / s_base
    ratio_mean = float(ratios.sum()) / len(ratios)
    k = min(TOP_K, len(s_base))
    readings = {
        "s_base": s_base,
        "s_post": s_post,
        "s_change": s_change,
        "cosines_left": library.singular_values(q_left[:k, :k]),
        "cosines_right": library.singular_values(q_right[:k, :k]),
        "drift": math.sqrt(total) / norm_base,
        "alpha": float((s_base * s_post).sum()) / norm_base**2,
        "ratio_cv": math.sqrt(float(((ratios - ratio_mean) ** 2).sum()) / len(ratios)) / ratio_mean,
        "nss": math.sqrt(float(((s_post - s_base) ** 2).sum())) / norm_base,
        "nf": math.sqrt(float(((q_left.T @ q_right - library.identity(q_left)) ** 2).sum()) / len(s_base)),
        "budget_scaling": scaled / total,
        "budget_coordinated": symmetric / total,
        "budget_discordant": skew / total,
        "budget_outside": outside / total,
        "overlap_left": float((q_left[:k, :k] ** 2).sum()) / k,
        "overlap_right": float((q_right[:k, :k] ** 2).sum()) / k,
        "fit_alpha": fit_alpha,
        "fit_error": math.sqrt(missed) / norm_post,
    }
    for which, values in (("base", s_base), ("post", s_post), ("change", s_change)):
        share = np.asarray((values / values.sum()).tolist())
        share = share[share > 0]
        readings[f"stable_rank_{which}"] = float((values**2).sum()) / float(values[0]) ** 2
        readings[f"effective_rank_{which}"] = math.exp(-float((share * np.log(share)).sum()))
    library.wait()
    return readings


def polar(library: Library, x: Any) -> Any:
    """Polar factor by the SVD."""
    left, _, right_t = library.svd(x)
    return left @ right_t


def rotation_difference(library: Library, base: Any, post: Any) -> float:
    """nf alone, by two SVDs."""
    u_base, s_base, vt_base = library.svd(base)
    u_post, _, vt_post = library.svd(post)
    difference = (u_base.T @ u_post).T @ (vt_base @ vt_post.T)
    difference = difference - library.identity(difference)
    return math.sqrt(float((difference**2).sum()) / len(s_base))


def drift_budget(library: Library, base: Any, post: Any) -> tuple[float, float, float]:
    """Shares of the diagonal, the symmetric and the skew part, by the base's SVD."""
    left, _, right_t = library.svd(base)
    change = post - base
    in_frame = left.T @ change @ right_t.T
    diagonal = float((in_frame.diagonal() ** 2).sum())
    symmetric = float((((in_frame + in_frame.T) / 2) ** 2).sum()) - diagonal
    skew = float((((in_frame - in_frame.T) / 2) ** 2).sum())
    total = float((change**2).sum())
    return diagonal / total, symmetric / total, skew / total


def weightwatcher_analysis(weights: Sequence[np.ndarray]) -> Callable[[], Any]:
    """weightwatcher over one model of these weights: its spectra and their power laws.

    Returns:
        A function that runs the analysis and returns weightwatcher's data frame.
    """
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")
        import torch
        import weightwatcher
    linears = []
    for weight in weights:
        rows, cols = weight.shape
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = torch.from_numpy(np.asarray(weight, np.float32))
        linears.append(linear)
    model = torch.nn.ModuleList(linears)

    def analyse():
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            watcher = weightwatcher.WeightWatcher(model=model, log_level=logging.ERROR)
            return watcher.analyze(plot=False)

    return analyse


@contextlib.contextmanager
def _silent():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _read(library: Library, path: str) -> dict[str, Any]:
    """Every tensor of a safetensors file, read the way the library's users do."""
    if isinstance(library, Torch):
        from safetensors.torch import load_file

        return load_file(path, device=library.device.type)
    if isinstance(library, Jnp):
        from safetensors.flax import load_file
    else:
        import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy)
        from safetensors.numpy import load_file
    return load_file(path)


def main(arguments: Sequence[str]) -> int:
    """Analyses every pair of two files and writes a CSV; returns the exit code."""
    kind, base_path, post_path, out = arguments
    import os

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    peer, _, form = kind.partition("-")
    (library,) = libraries([peer], threads)
    analyse = {"": script, "careful": careful_script, "full": full_script}[form]
    base, post = _read(library, base_path), _read(library, post_path)
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        for index, name in enumerate(base):
            readings = analyse(library, base[name], post[name])
            scalars = {key: value for key, value in readings.items() if isinstance(value, float)}
            if not index:
                writer.writerow(["name", *scalars, "s_base", "s_post"])
            spectra = [" ".join(map(repr, readings[key].tolist())) for key in ("s_base", "s_post")]
            writer.writerow([name, *scalars.values(), *spectra])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
