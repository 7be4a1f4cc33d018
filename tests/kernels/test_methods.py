"""Methods: each owns what is its own, and a new one is a class that is registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import polarax
from polarax import kernels
from polarax.cli import main
from polarax.kernels import methods
from polarax.kernels.products import matmul, transpose
from polarax.planning.options import Options
from polarax.planning.rates import Rates
from polarax.planning.request import check_request
from tests.kernels import matrices, singular_frames

# Memory of the toy for each number of a matrix: no other method takes as much.
BYTES = 10**7


class Jacobi(methods.Method):
    """One-sided Jacobi: rotates pairs of columns until all are orthogonal (Golub and Van Loan, section 8.6.3)."""

    name = "jacobi"

    def svd_of_tall(self, tall, *, vectors):
        parts = jax.vmap(self._svd)(tall.reshape(-1, *tall.shape[-2:]))
        return tuple(part.reshape(*tall.shape[:-2], *part.shape[1:]) for part in parts)

    def work_bytes(self, m, n, *, itemsize, stored_bytes, posts, between):
        return BYTES * m * n

    def operations(self, m, n, *, posts=1, random_changes=0):
        return methods.Operations(products=7.0, decompositions=0.0)

    @staticmethod
    def _svd(x):
        cols = x.shape[1]
        right = jnp.eye(cols, dtype=x.dtype)
        places = jnp.asarray([(p, q) for _ in range(12) for p in range(cols) for q in range(p + 1, cols)] or [(0, 0)])

        def rotate(state, pair):
            image, right = state
            p, q = pair
            a, b, c = (jnp.sum(image[:, i] * image[:, j]) for i, j in ((p, p), (q, q), (p, q)))
            angle = jnp.arctan2(2 * c, a - b) / 2
            turn = jnp.eye(cols, dtype=x.dtype)
            turn = turn.at[p, p].set(jnp.cos(angle)).at[q, q].set(jnp.cos(angle))
            turn = turn.at[q, p].set(jnp.sin(angle)).at[p, q].set(-jnp.sin(angle))
            turn = jnp.where(p == q, jnp.eye(cols, dtype=x.dtype), turn)
            return (matmul(image, turn), matmul(right, turn)), None

        (image, right), _ = jax.lax.scan(rotate, (x, right), places)
        values = jnp.sqrt(jnp.sum(image**2, axis=0))
        order = jnp.argsort(-values)
        values, image, right = values[order], image[:, order], right[:, order]
        return image / jnp.where(values > 0, values, 1), values, right


@pytest.fixture
def jacobi():
    methods.register(Jacobi())
    yield "jacobi"
    del methods.METHODS["jacobi"]


def test_names():
    assert kernels.SVD_METHODS == ("auto", "gram", "lapack", "polar")
    assert methods.method_names() == kernels.SVD_METHODS


def test_a_new_method_decomposes(jacobi):
    assert jacobi in kernels.SVD_METHODS
    with jax.enable_x64(True):
        for shape in ((9, 5), (5, 9), (2, 6, 6)):
            x = matrices.generator("jacobi", shape).standard_normal(shape)
            u, s, v = kernels.svd(x, method=jacobi)
            np.testing.assert_allclose(s, np.linalg.svd(x, compute_uv=False), rtol=1e-12)
            np.testing.assert_allclose(matmul(u * s[..., None, :], transpose(v)), x, atol=1e-12)
            np.testing.assert_array_equal(kernels.singular_values(x, method=jacobi), s)


def test_a_new_method_makes_frames(jacobi):
    """Of one pair, of several posts and each other, and of posts made in turn: by thin SVDs, without a word of it."""
    base = matrices.matrix("mild", (9, 5), "float64")
    posts = np.stack([matrices.drifted(base, 0.1, seed) for seed in range(2)])
    expected = [singular_frames.nf(singular_frames.reference(base, post)) for post in posts]
    between = singular_frames.nf(singular_frames.reference(*posts))

    def read(pair, *_):
        return kernels.rotation_difference(pair)

    with jax.enable_x64(True):
        how = dict(dtype="float64", method=jacobi)
        assert read(kernels.frames(base, posts[0], method=jacobi)) == pytest.approx(expected[0], rel=1e-9)
        of_posts, of_pairs = kernels.map_posts(read, base, posts, pairs=((0, 1),), read_pair=read, **how)
        np.testing.assert_allclose(of_posts, expected, rtol=1e-9)
        np.testing.assert_allclose(of_pairs, [between], rtol=1e-9)
        made = kernels.map_frames(read, base, lambda change: base + change, jnp.asarray(posts - base), **how)
        np.testing.assert_allclose(made, expected, rtol=1e-9)


def _checkpoints():
    base = matrices.matrix("mild", (12, 8))
    return {"model.layers.0.self_attn.q_proj.weight": base}, {
        "model.layers.0.self_attn.q_proj.weight": matrices.drifted(base, 0.1)
    }


def test_a_new_method_is_planned(jacobi):
    base, post = _checkpoints()

    def planned(method):
        return check_request(base, post, Options(top_k=4, method=method)).plan

    (stack,) = planned(jacobi).stacks
    assert stack.work_bytes == BYTES * 12 * 8 > planned("lapack").stacks[0].work_bytes
    assert planned(jacobi).peak_memory - planned("lapack").peak_memory == (
        stack.work_bytes - planned("lapack").stacks[0].work_bytes
    )
    assert Rates(products=1.0, decompositions=1.0).seconds([stack], jacobi) == 7


def test_a_new_method_is_one_for_compare_and_plan(jacobi, tmp_path, capsys):
    base, post = _checkpoints()
    how = dict(metrics="rotation,scaling", control_draws=0)
    run, expected = (
        polarax.compare(base, post, out=tmp_path / name, method=name, **how) for name in (jacobi, "lapack")
    )
    np.testing.assert_allclose(run.frame().nf, expected.frame().nf, rtol=1e-9)
    save_file(base, tmp_path / "base.safetensors")
    memory = []
    for name in (jacobi, "lapack"):
        assert main(["plan", f"--base={tmp_path}/base.safetensors", f"--method={name}", "--device=none"]) == 0
        memory += [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory")]
    assert len(set(memory)) == 2


@pytest.mark.parametrize(
    ("platform", "fast_float64", "name"),
    [("cpu", True, "auto"), ("gpu", True, "auto"), ("gpu", False, "polar"), ("tpu", False, "polar")],
)
def test_what_auto_stands_for(platform, fast_float64, name):
    assert methods.method_for(platform, fast_float64=fast_float64) == name


def test_memory():
    """By Gram matrices n x n arrays and blocks of rows in float64 and the pair once more; by SVDs whole arrays."""
    how = dict(stored_bytes=11, posts=1, between=False)
    for name in ("gram", "auto"):
        method = methods.method_named(name)
        assert method.work_bytes(3000, 100, itemsize=8, **how) == 8 * 100 * (12 * 100 + 15 * 512) + 11
        assert method.work_bytes(300, 100, itemsize=4, **how) == 8 * 100 * (12 * 100 + 15 * 300) + 11
    for name in ("lapack", "polar"):
        method = methods.method_named(name)
        assert method.work_bytes(300, 100, itemsize=4, **how) == 4 * 12 * 300 * 100
        assert method.work_bytes(300, 100, itemsize=8, **how | {"posts": 3}) == 8 * (12 + 2) * 300 * 100
        kept = method.work_bytes(300, 100, itemsize=8, **how | {"posts": 3, "between": True})
        assert kept == 8 * ((12 + 2) * 300 * 100 + 2 * 400 * 100)


def test_names_that_are_taken_or_unknown():
    for name in ("auto", "gram"):
        taken = type("Taken", (Jacobi,), {"name": name})
        with pytest.raises(ValueError, match=name):
            methods.register(taken())
    with pytest.raises(ValueError, match="'magic'.*auto, gram, lapack, polar"):
        methods.method_named("magic")
