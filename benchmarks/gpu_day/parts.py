"""The parts of the day: each is one process, which writes a record for everything that it measures.

Every part is a function of a `Day`. Sizes are those of Llama-3.1-8B's layers; the smallest form divides them.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gpu_day import weights

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Of one layer of Llama-3.1-8B, out x in: q and o, k and v, gate and up, down.
LAYER = ((4096, 4096, 2), (1024, 4096, 2), (14336, 4096, 2), (4096, 14336, 1))
LAYERS = 32

# How a float32 product is taken: as jax names it.
PRECISIONS = {
    "TF32 x3": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "bf16 x3": lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
    "float32": lax.Precision.HIGHEST,
    "bf16 x6": lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
}
_MOST_RUNS = 5


@dataclasses.dataclass
class Day:
    """What a part is given."""

    write: Callable[[dict[str, Any]], None]  # takes a record
    divisor: int  # of all sizes: 1, or more in the smallest form
    seconds: float  # that the part has in all

    def __post_init__(self):
        self._began = time.monotonic()

    def size(self, full: int) -> int:
        """A side of a matrix."""
        return max(8, full // self.divisor)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self._began)

    @contextlib.contextmanager
    def case(self, name: str, **about: Any) -> Iterator[dict[str, Any]]:
        """A record, written with what is put into it; an error is written in its place, and the part goes on."""
        record: dict[str, Any] = {"case": name, **about}
        try:
            yield record
        except Exception as error:
            record["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self.write({**record, **_memory()})

    def timed(self, record: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Puts the seconds of a first call and of some more into the record; returns what the first one gave."""
        start = time.perf_counter()
        result = call()
        record["first"] = time.perf_counter() - start
        runs: list[float] = []
        while len(runs) < _MOST_RUNS and (not runs or sum(runs) < 1.0) and self.left > 2 * record["first"]:
            start = time.perf_counter()
            call()
            runs.append(time.perf_counter() - start)
        record["seconds"] = statistics.median(runs or [record["first"]])
        record["runs"] = len(runs)
        return result

    def program(
        self,
        record: dict[str, Any],
        function: Callable,
        *arguments: Any,
        x64: bool = False,
        options: Mapping[str, Any] | None = None,
        **keywords: Any,
    ):
        """Times a function compiled by jax, with the compiler's options or as polarax does; returns what it gave."""
        if options is None and jax.default_backend() == "gpu":
            options = _COMPILERS["without Triton"]
        with jax.enable_x64(x64):
            start = time.perf_counter()
            jitted = function if hasattr(function, "lower") else jax.jit(function)
            compiled = jitted.lower(*arguments, **keywords).compile(compiler_options=options)
            record["compile"] = time.perf_counter() - start
            return self.timed(record, lambda: jax.block_until_ready(compiled(*arguments)))


def device(day: Day) -> None:
    """What the machine is."""
    first = jax.local_devices()[0]
    with day.case("device") as record:
        record |= {"backend": jax.default_backend(), "device": first.device_kind, "jax": jax.__version__}
        record["memory_bytes"] = (first.memory_stats() or {}).get("bytes_limit")
        record["torch_installed"] = importlib.util.find_spec("torch") is not None


def products(day: Day) -> None:
    """Peak of matrix products, in every precision."""
    for full in (4096, 8192):
        n = day.size(full)
        kinds = {"float64": ("float64", None), **{name: ("float32", p) for name, p in PRECISIONS.items()}}
        kinds["bf16"] = ("bfloat16", lax.DotAlgorithmPreset.BF16_BF16_F32)
        for name, (dtype, precision) in kinds.items():
            with day.case(f"product {name}", n=n, precision=name) as record, jax.enable_x64(dtype == "float64"):
                x, y = (jax.random.normal(jax.random.key(seed), (n, n), "float32").astype(dtype) for seed in (0, 1))
                call = functools.partial(jnp.matmul, precision=precision, preferred_element_type=_wide(dtype))
                found = day.program(record, call, x, y, x64=dtype == "float64")
                record["flops"] = 2.0 * n**3 / record["seconds"]
                rows = min(n, 64)  # of which the error is taken, on the host
                exact = np.asarray(x[:rows], np.float64) @ np.asarray(y, np.float64)
                difference = np.asarray(found[:rows], np.float64) - exact
                record["relative_error"] = float(np.linalg.norm(difference) / np.linalg.norm(exact))


def headlines(day: Day) -> None:
    """The group "polar" by products, as `polarax compare --metrics=polar` runs it on a GPU, in either dtype."""
    from polarax.measuring.program import measure_stack
    from polarax.planning.measurement import Measurement

    n = day.size(4096)
    base, post = weights.stack(n, n, 1)
    for dtype in ("float64", "float32"):
        measurement = Measurement(("polar",), dtype=dtype, by_products=True)
        with day.case(f"headlines by products, {dtype}", rows=n, cols=n) as record:
            options = {"x64": dtype == "float64", "measurement": measurement, "batched": True}
            found = day.program(record, measure_stack, base, (post,), **options)
            readings = {key: float(x[0]) for key, x in jax.device_get(found.posts[0]).items()}
            wanted = ("nf", "nf_null", "symmetry", "budget_outside", "nuclear_norm_ratio", "polar_residual")
            record["readings"] = {key: readings[key] for key in (*wanted, "polar_steps")}


def torch_svd(day: Day, shapes=((1024, 1024), (1536, 1536), (4096, 4096))) -> None:
    """torch.linalg.svd of one matrix, float32, as a user calls it."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"

    def wait():
        if where == "cuda":
            torch.cuda.synchronize()

    for full in shapes:
        rows, cols = map(day.size, full)
        with day.case("torch.linalg.svd", rows=rows, cols=cols, torch=torch.__version__, on=where) as record:
            base, _ = weights.pair(rows, cols, dtype="float32")
            x = torch.from_numpy(np.array(base)).to(where)
            wait()

            def call(x=x):
                torch.linalg.svd(x, full_matrices=False)
                wait()

            day.timed(record, call)
            if where == "cuda":
                record["torch_peak_bytes"] = torch.cuda.max_memory_allocated()


def jnp_svd(day: Day, shapes=((1024, 1024), (1536, 1536), (4096, 4096))) -> None:
    """jnp.linalg.svd of one matrix, float32, as a user calls it."""
    for full in shapes:
        rows, cols = map(day.size, full)
        with day.case("jnp.linalg.svd", rows=rows, cols=cols) as record:
            base, _ = weights.pair(rows, cols, dtype="float32")
            day.program(record, functools.partial(jnp.linalg.svd, full_matrices=False), base)


def pair(day: Day) -> None:
    """The whole analysis of one pair of 4096 x 4096, and without what only polarax has."""
    from polarax.metrics import GROUPS

    n = day.size(4096)
    base, post = weights.stack(n, n, 1)
    groups = {"everything": tuple(GROUPS), "scaling and rotation": ("scaling", "rotation")}
    for name, chosen in groups.items():
        with day.case(f"pair, {name}", rows=n, cols=n, count=1) as record:
            _measure(day, record, base, post, chosen)


def layer(day: Day) -> None:
    """One layer of Llama-3.1-8B, everything that polarax measures: a stack for each shape."""
    from polarax.metrics import GROUPS

    for full_rows, full_cols, count in LAYER if day.divisor == 1 else LAYER[1::2]:
        rows, cols = day.size(full_rows), day.size(full_cols)
        with day.case("layer", rows=rows, cols=cols, count=count) as record:
            base, post = weights.stack(rows, cols, count)
            if rows < cols:  # as a run reads them
                base, post = (jnp.swapaxes(x, 1, 2) for x in (base, post))
            _measure(day, record, base, post, tuple(GROUPS))


def accuracy(day: Day) -> None:
    """The headlines by products and a whole pair against float64 on the host, at 1536."""
    from polarax.metrics import GROUPS

    n = day.size(1536)
    base, post = weights.stack(n, n, 1, dtype="float32")
    expected = _reference(*(np.asarray(x[0], np.float64) for x in (base, post)))
    for name, groups, dtype, by_products in (
        ("everything", tuple(GROUPS), "float64", False),
        ("headlines by products, float32", ("polar",), "float32", True),
        ("headlines by products, float64", ("polar",), "float64", True),
    ):
        with day.case(f"accuracy of {name}", rows=n, cols=n) as record:
            found = _measure(day, record, base, post, groups, dtype=dtype, by_products=by_products)
            record["readings"] = {key: float(found[key][0]) for key in expected if key in found}
            record["expected"] = expected


def kernels(day: Day) -> None:
    """What the analyses are made of, alone: to see where a pair's time goes, and which driver `auto` should take."""
    from polarax import kernels
    from polarax.kernels.controls_by_products import exponential_traces
    from polarax.kernels.gram import _tridiagonal_eigenvalues, gram
    from polarax.kernels.polar_polynomial import polynomial_polar
    from polarax.kernels.polar_qdwh import qdwh_polar

    n = day.size(4096)
    base, _ = weights.pair(n, n, dtype="float32")
    single = {
        "polar by polynomials": polynomial_polar,
        "polar by QDWH": qdwh_polar,
        "Gram matrix": gram,
        "QR": jnp.linalg.qr,
        "frames' SVD, method auto": kernels.svd,
    }
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = base.astype(dtype)
            for name, function in single.items():
                with day.case(name, n=n, dtype=dtype) as record:
                    day.program(record, function, x, x64=dtype == "float64")
            symmetric = jax.block_until_ready(jax.jit(gram)(x))
            for name, function in {
                "eigh": functools.partial(lax.linalg.eigh, symmetrize_input=False),
                "eigenvalues": jnp.linalg.eigvalsh,  # which jaxlib takes with vectors on GPUs
                "eigenvalues by tridiagonal form": _tridiagonal_eigenvalues,
                "Cholesky": jnp.linalg.cholesky,
                "traces of exponentials": exponential_traces,
            }.items():
                with day.case(name, n=n, dtype=dtype) as record:
                    given = symmetric if name != "traces of exponentials" else symmetric / jnp.linalg.norm(symmetric)
                    day.program(
                        record,
                        (lambda g: exponential_traces(g).traces) if name == "traces of exponentials" else function,
                        given,
                        x64=dtype == "float64",
                    )
            for size, count in ((1024, 8), (256, 64), (64, 64)):
                small = day.size(size)
                stacked = jnp.stack([symmetric[:small, :small]] * count)
                with day.case("eigh of a batch", n=small, count=count, dtype=dtype) as record:
                    call = functools.partial(lax.linalg.eigh, symmetrize_input=False)
                    day.program(record, call, stacked, x64=dtype == "float64")


def first_look(day: Day) -> None:
    """`polarax compare --quick` in memory, on one pair of each shape of a layer."""
    from polarax.measuring.program import measure_stack
    from polarax.planning.devices import takes_batches
    from polarax.planning.measurement import Measurement
    from polarax.planning.options import Options

    measurement = Measurement.parse(Options(quick=True))
    for rows, cols in ((day.size(rows), day.size(cols)) for rows, cols, _ in LAYER):
        with day.case("first look", rows=rows, cols=cols) as record:
            base, post = weights.stack(rows, cols, 1)
            if rows < cols:  # as a run reads them
                base, post = (jnp.swapaxes(x, 1, 2) for x in (base, post))
            keywords = {"measurement": measurement, "batched": takes_batches()}
            day.program(record, measure_stack, base, (post,), x64=True, **keywords)


def compilation(day: Day, options: Mapping[str, Any] | None = None) -> None:
    """How long the programs of one shape take to compile and to run, with options of the compiler: a part for each."""
    from polarax.measuring.program import measure_stack
    from polarax.metrics import GROUPS
    from polarax.planning.measurement import Measurement
    from polarax.planning.options import Options

    n = day.size(2048)
    base, post = weights.stack(n, n, 1)
    with day.case("first look", rows=n, cols=n, options=dict(options or {})) as record:
        keywords = {"measurement": Measurement.parse(Options(quick=True)), "batched": True}
        day.program(record, measure_stack, base, (post,), x64=True, options=options, **keywords)
    with day.case("everything", rows=n, cols=n, options=dict(options or {})) as record:
        _measure(day, record, base, post, tuple(GROUPS), options=options)


_COMMAND = """
import sys
from benchmarks.gpu_day.layout import make_importable
make_importable()
from polarax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def commands(day: Day, layers: int = 4) -> None:
    """Whole commands on files, warm and from an empty cache, and torch scripts beside them: Qwen2.5-1.5B's shapes."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    with tempfile.TemporaryDirectory(prefix="polarax-day-") as temporary:
        folder = pathlib.Path(temporary)

        def run(arguments, **more):
            done = subprocess.run(
                [sys.executable, *arguments],
                env=environment | more,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-250:]}")

        shapes = ["--model=qwen2.5-1.5b", f"--layers={layers}", "--same", f"--shrink={day.divisor}"]
        run(["-m", "benchmarks.checkpoints", f"--folder={folder}", *shapes])
        files = [folder / f"{side}.safetensors" for side in ("base", "post")]
        compare = ["-c", _COMMAND, "compare", f"--base={files[0]}", f"--post={files[1]}", "--noplots"]
        runs = itertools.count()
        for name, arguments, more in (
            ("polarax compare --quick", ["--quick"], {}),
            ("polarax compare", [], {}),
            ("polarax compare --metrics=scaling,rotation", ["--metrics=scaling,rotation"], {}),
            ("polarax compare, on the host's cores", [], {"JAX_PLATFORMS": "cpu"}),
        ):
            more = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), **more}
            with day.case(name, layers=layers) as record:
                day.timed(
                    record, lambda a=arguments, m=more: run([*compare, f"--out={folder / str(next(runs))}", *a], **m)
                )
            if name == "polarax compare --quick" and importlib.util.find_spec("torch") is not None:
                for script in ("torch", "torch-careful"):
                    with day.case(f"script {script}", layers=layers) as record:
                        day.timed(
                            record,
                            lambda s=script: run(["-m", "benchmarks.peers", s, *map(str, files), f"{folder}/{s}"]),
                        )


def _measure(
    day, record, base, post, groups, *, dtype=None, by_products=False, options=None
) -> Mapping[str, np.ndarray]:
    """Times a stack as `polarax compare` runs it on this device; returns the readings of its post."""
    from polarax.measuring.program import measure_stack
    from polarax.planning.devices import takes_batches, working_dtype, working_method
    from polarax.planning.measurement import Measurement

    dtype = dtype or working_dtype("auto")
    method = working_method("auto")
    measurement = Measurement(groups, dtype=dtype, method=method, by_products=by_products)
    record |= {"dtype": dtype, "method": method}
    batched = takes_batches() or by_products
    found = day.program(
        record, measure_stack, base, (post,), x64=True, options=options, measurement=measurement, batched=batched
    )
    return jax.device_get(found.posts[0])


def _reference(base, post):
    """From the definitions, by LAPACK in float64."""
    (u, s, vt), (u_post, s_post, vt_post) = (np.linalg.svd(x, full_matrices=False) for x in (base, post))
    change = post - base
    in_frame = u.T @ change @ vt.T
    inside = float(np.sum(in_frame**2))
    difference = (u_post @ vt_post).T @ (u @ vt) - np.eye(len(s))
    diagonal = float(np.sum(np.diag(in_frame) ** 2))
    across = float(np.sum(in_frame * in_frame.T))
    return {
        "nf": float(np.linalg.norm(difference)) / math.sqrt(len(s)),
        "alpha": float(s @ s_post / (s @ s)),
        "symmetry": across / inside,
        "coordination": (across - diagonal) / (inside - diagonal),
        "budget_scaling": diagonal / float(np.sum(change**2)),
        "nuclear_norm_ratio": float(s_post.sum() / s.sum()),
    }


def _wide(dtype):
    return "float32" if dtype == "bfloat16" else dtype


def _memory():
    """The most that jax had on the device until now, in this process."""
    try:
        stats = jax.local_devices()[0].memory_stats() or {}
    except (RuntimeError, jax.errors.JaxRuntimeError):
        return {}
    return {"peak_bytes": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


_LONG = ((4096, 14336),)

# Name -> options of the compiler.
_COMPILERS: dict[str, dict[str, Any]] = {
    "with Triton": {},
    "without Triton": {"xla_gpu_enable_triton_gemm": False},
    "without autotuning": {"xla_gpu_autotune_level": 0},
}

# Name -> what it does and the seconds it has: the targets' numbers first.
PARTS: dict[str, tuple[Callable[[Day], None], float]] = {
    "device": (device, 40),
    "headlines": (headlines, 75),
    "torch": (torch_svd, 60),
    "pair": (pair, 75),
    "layer": (layer, 120),
    "commands": (commands, 150),
    "accuracy": (accuracy, 90),
    "products": (products, 50),
    "first look": (first_look, 75),
    "kernels": (kernels, 90),
    "jnp": (jnp_svd, 60),
    "torch, long": (functools.partial(torch_svd, shapes=_LONG), 60),
    "jnp, long": (functools.partial(jnp_svd, shapes=_LONG), 60),
    **{
        f"compiling {name}": (functools.partial(compilation, options=options), 60)
        for name, options in _COMPILERS.items()
    },
}


def run(name: str, path: str, divisor: int, seconds: float) -> None:
    """Runs one part in this process; its records go to the end of a file, one line each."""
    with open(path, "a", encoding="utf-8") as file:

        def write(record):
            file.write(json.dumps({"part": name, **record}) + "\n")
            file.flush()

        function, _ = PARTS[name]
        day = Day(write, divisor, seconds)
        with day.case("whole part") as record:
            start = time.perf_counter()
            function(day)
            record["took"] = time.perf_counter() - start
