"""The compiled program for platforms that are not at hand, read from its lowered text."""

import functools
import itertools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax import export

from polarax.measuring.program import measure_in_parts, run_part
from polarax.metrics import quick_groups
from polarax.planning.measurement import Measurement

# The custom calls of the linear algebra are what is looked at, not a promise that they stay the same for years.
CHECKS = [
    export.DisabledSafetyCheck.custom_call(name)
    for name in (
        "cusolver_gesvdj_ffi",
        "cusolver_geqrf_ffi",
        "cusolver_orgqr_ffi",
        "Qr",
        "ProductOfElementaryHouseholderReflectors",
    )
]


class Lowering:
    """A run of a measurement's parts that lowers each for a platform, and what they fall back to as well.

    Args:
        platform: One of XLA's.
        known: Parts that were lowered before, by all that their text depends on.
    """

    def __init__(self, platform, known):
        self.platform, self.known, self.texts = platform, known, {}

    def __call__(self, part, *stacks, operands=None, **static):
        operands = {name: jnp.asarray(float(x) if name == "rows" else x) for name, x in (operands or {}).items()}
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (operands, *stacks))
        leaves, tree = jax.tree.flatten(given)
        static = tuple(sorted(static.items()))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (self.platform, jax.config.jax_enable_x64, part, static, tree, shapes)
        if key not in self.known:
            program = jax.jit(functools.partial(run_part, part=part.__name__, static=static))
            exported = export.export(program, platforms=[self.platform], disabled_checks=CHECKS)(*given)
            found = jax.tree.unflatten(exported.out_tree, exported.out_avals)
            self.known[key] = exported.mlir_module(), found
        text, found = self.known[key]
        self.texts.setdefault(part.__name__, []).append(text)
        return found

    def resolved(self, related, fallback):
        return related.arrays if related.resolved is None else fallback()

    def repeat(self, count, step, first):
        return step(0, first)


@pytest.fixture(scope="module")
def parts():
    """StableHLO text of each program of the analysis of four bfloat16 matrices with their posts, by the part's name."""
    known = {}

    def parts(platform, dtype, shape, *, posts=1, **what):
        what = {"method": "polar" if platform == "tpu" else "auto"} | what  # what "auto" is on a TPU
        stack, run = jax.ShapeDtypeStruct((4, *shape), jnp.bfloat16), Lowering(platform, known)
        measurement = Measurement(dtype=dtype, **what)
        keys = [jax.ShapeDtypeStruct((4, 2), jnp.uint32)] * bool(measurement.draws)
        pairs = tuple(itertools.combinations(range(posts), 2))
        with jax.enable_x64(dtype == "float64"):
            measure_in_parts(run, stack, (stack,) * posts, *keys, measurement=measurement, pairs=pairs)
        return {name: "\n".join(texts) for name, texts in run.texts.items()}

    return parts


@pytest.fixture(scope="module")
def lowered(parts):
    """The text of all programs; of the whole analysis unless something else is asked for."""
    return lambda *where, **what: "\n".join(parts(*where, **what).values())


def custom_calls(text):
    return Counter(re.findall(r"stablehlo\.custom_call @(\w+)", text))


KINDS = {
    "one post": {},
    "several posts": {"posts": 3},
    "draws": {"control_draws": 2},
    "values": {"groups": ("scaling",)},
}


@pytest.mark.parametrize("shape", [(96, 64), (64, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_tpu_gets_no_float64_and_its_own_solvers(parts, shape, kind):
    for name, text in parts("tpu", "float32", shape, **KINDS[kind]).items():
        assert not re.search(r"tensor<(\d+x)*f64>", text), name
        calls = custom_calls(text)
        assert not [call for call in calls if call.startswith(("lapack", "cusolver")) or "callback" in call], name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float64"), ("cuda", "float32"), ("tpu", "float32")])
def test_the_host_has_no_part_in_a_program_and_products_are_at_full_precision(parts, platform, dtype, kind):
    for name, text in parts(platform, dtype, (96, 64), **KINDS[kind]).items():
        assert not [call for call in custom_calls(text) if "callback" in call or call.startswith("lapack")], name
        products = re.findall(r"stablehlo\.dot_general.*", text)
        assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line], name


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_the_fallback_is_no_part_of_what_decomposes(parts, platform):
    """It is a program of its own, which is made when a matrix needs it."""
    texts = parts(platform, "float64", (96, 64))
    svd = "gesvd" if platform == "cuda" else "gesdd"
    assert [name for name, text in texts.items() if any(svd in call for call in custom_calls(text))] == [
        "pair_by_fallback",
        "read_frames",  # of the few leading vectors
    ]


def test_what_follows_the_frames_is_one_program_for_all_shapes(parts):
    names = ("read_frames", "read_drawn", "sampled_columns")
    one, another = (parts("cpu", "float64", shape, control_draws=1) for shape in ((96, 64), (70, 64)))
    for name in names:
        assert without_places(one[name]) == without_places(another[name])
    assert without_places(one["decompose_pair"]) != without_places(another["decompose_pair"])


def without_places(text):
    return [line for line in text.splitlines() if not line.startswith("#loc")]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cuda_takes_the_gram_route(lowered, dtype):
    calls = custom_calls(lowered("cuda", dtype, (96, 64)))
    assert any("syevd" in name for name in calls)
    assert not any(name.startswith("lapack") for name in calls)


def test_cpu_takes_the_gram_route(lowered):
    calls = custom_calls(lowered("cpu", "float64", (96, 64)))
    assert calls["lapack_dsyevd_ffi"]
    assert not any(name.startswith("cusolver") for name in calls)


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float64"), ("cuda", "float32"), ("cpu", "float64")])
def test_every_product_is_at_full_precision(lowered, platform, dtype):
    products = re.findall(r"stablehlo\.dot_general.*", lowered(platform, dtype, (96, 64)))
    assert products
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]


HEADLINES = {"groups": ("polar",), "by_products": True}


@pytest.mark.parametrize("shape", [(96, 64), (64, 64)])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_headlines_by_products(lowered, platform, shape):
    """No float64, every product at full precision, nothing from the host; an SVD for each matrix that needs one."""
    text = lowered(platform, "float32", shape, **HEADLINES)
    assert not re.search(r"tensor<(\d+x)*f64>", text)
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert len(products) > 20
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    calls = custom_calls(text)
    assert not [name for name in calls if "callback" in name or name.startswith("lapack") or "syev" in name]
    if platform == "cuda":
        single = f"tensor<{shape[0]}x{shape[1]}xf32>"
        decomposed = re.findall(r"@cusolver_gesvdj_ffi\(.*", text)
        assert len(decomposed) == 2 and all(single in line for line in decomposed)


def test_headlines_by_products_in_float64_on_cuda(lowered):
    text = lowered("cuda", "float64", (64, 64), **HEADLINES)
    assert re.search(r"tensor<4x64x64xf64>", text)
    assert not [name for name in custom_calls(text) if "callback" in name or name.startswith("lapack")]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_eigenproblems_of_a_stack_are_one_call(lowered, platform):
    """No loop over matrices anywhere in the whole analysis: all four are given at once."""
    text = lowered(platform, "float32" if platform == "tpu" else "float64", (64, 64))
    solved = re.findall(r"@(?:cusolver_syevd_ffi|Eigh)\(.*? : \(tensor<([\dx]+)xf\d\d>\) ->", text)
    stacks = [[int(size) for size in sizes.split("x")] for sizes in solved]
    assert stacks and all(len(sizes) > 2 and math.prod(sizes[:-2]) % 4 == 0 for sizes in stacks)
    assert not [name for name in custom_calls(text) if "callback" in name]


@pytest.mark.parametrize("shape", [(96, 64), (64, 64)])
@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float64"), ("cuda", "float32"), ("tpu", "float32")])
def test_a_first_look(lowered, platform, dtype, shape):
    """Products with the matrices in float32 at full precision; eigenproblems are of a few blocks, nothing larger."""
    quick = {"quick": True, "groups": quick_groups()}
    text = lowered(platform, dtype, shape, **quick)
    if platform == "tpu":
        assert not re.search(r"tensor<(\d+x)*f64>", text)
    products = re.findall(r"stablehlo\.dot_general.*", text)
    with_matrices = [line for line in products if re.search(rf"tensor<(4x)?{shape[0]}x{shape[1]}x", line)]
    assert with_matrices and not [line for line in with_matrices if "f64" in line]
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    assert not [name for name in custom_calls(text) if "callback" in name or name.startswith("lapack")]
