"""Edits of bases that are kept decomposed: nothing is decomposed again, and the weights are the same."""

import jax
import numpy as np
import pytest

import polarax
from polarax.editing import execution
from polarax.editing.program import decompose_base, find_maps
from polarax.kernels.edits.tall_pair import tall_pair
from polarax.loaders import open_checkpoint
from polarax.measuring.parts import How
from tests.engine.command import NO_CACHE
from tests.engine.conftest import write_checkpoint
from tests.kernels.matrices import drifted, matrix

TALL, WIDE, SQUARE = (f"model.layers.0.self_attn.{role}_proj.weight" for role in "qkv")
DOUBLE = "model.layers.0.self_attn.o_proj.weight"
FLOAT = 2.0**-52

_tall_pair = jax.jit(tall_pair, static_argnames=("dtype",))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Paths and arrays of a base and a post, with a tall matrix, a wide one of lower rank, and square ones."""
    base = {
        TALL: matrix("llm_like", (40, 24), "bfloat16"),
        WIDE: matrix("rank_deficient", (24, 40), "float32"),
        SQUARE: matrix("separated", (24, 24), "float32"),
        DOUBLE: matrix("separated", (24, 24), "float64"),
    }
    post = {name: drifted(array, 0.05) for name, array in base.items()}
    folder = tmp_path_factory.mktemp("kept")
    paths = [write_checkpoint(folder / f"{side}.safetensors", x) for side, x in (("base", base), ("post", post))]
    return paths, base, post


@pytest.fixture(scope="module")
def kept(pair, tmp_path_factory):
    """What a comparison kept."""
    folder = tmp_path_factory.mktemp("bases")
    polarax.compare(*pair[0], metrics="rotation", keep_base=folder, progress=False)
    return folder


@pytest.fixture
def decomposed(monkeypatch):
    """Shapes of the bases that were decomposed to be kept, and whether maps were found of one that was, as lists."""
    bases, given = [], []
    compiled = execution._Editor._compiled

    def noted(self, function, arguments, static):
        program = compiled(self, function, arguments, static)

        def counted(*operands):
            if function is decompose_base:
                bases.append(operands[0].shape)
            if function is find_maps:
                given.append(operands[5] is not None)
            return program(*operands)

        return counted

    monkeypatch.setattr(execution._Editor, "_compiled", noted)
    return bases, given


def _edit(paths, kind, out, keep_base=None, **options):
    given = {"store_dtype": "float64", "progress": False} | ({"factor": 1.3} if kind == "scale-values" else {})
    edited = polarax.edit(*paths, kind, out, keep_base=keep_base, **given | options)
    checkpoint = open_checkpoint(edited.path)
    return {name: np.asarray(checkpoint.read(name).result()) for name in checkpoint.names()}, edited


def _assert_same(found, expected):
    """Both came from the same numbers, to rounding: of weights, and of what was measured of them."""
    for name, weights in expected[0].items():
        assert np.linalg.norm(found[0][name] - weights) <= 1e-12 * np.linalg.norm(weights), name
    frames = [edited.frame().set_index("name") for _, edited in (found, expected)]
    numbers = frames[1].select_dtypes("float").columns
    np.testing.assert_allclose(*(frame[numbers] for frame in frames), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "roles"), [("break-right", "q,k,o"), ("random-control", "k,o")])
def test_what_a_comparison_kept_is_not_decomposed_again(pair, kept, decomposed, tmp_path, kind, roles):
    expected = _edit(pair[0], kind, tmp_path / "without", roles=roles)
    bases, given = decomposed
    given.clear()
    _assert_same(_edit(pair[0], kind, tmp_path / "with", kept, roles=roles), expected)
    assert not bases
    kept_ones = len(roles.split(",")) - 1  # float64 weights are not kept
    assert sorted(given) == [False] + [True] * kept_ones


@pytest.mark.parametrize("spectrum", ["llm_like", "rank_deficient", "clustered"])
def test_all_that_edits_are_made_of_is_the_same(spectrum):
    """Whatever the kind. Both take the same steps, so that vectors may be compared, of equal singular values too."""
    base = matrix(spectrum, (40, 24), "float32")
    post = drifted(base, 0.05)
    with jax.enable_x64(True):
        begun = jax.tree.map(lambda x: x[0], decompose_base(base[None], how=How("auto", "float64")))
        found, expected = (jax.device_get(_tall_pair(base, post, begun=x, dtype="float64")) for x in (begun, None))
    largest = float(expected.base.values[0])
    for kept, made in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(kept, made, rtol=0, atol=1e-12 * max(1, largest**2))
    frame, squares = found.base.frame, found.base.values**2
    exact = base.astype(np.float64).T @ base.astype(np.float64)
    np.testing.assert_allclose((frame * squares) @ frame.T, exact, atol=1e-13 * largest**2)


def test_weights_are_those_of_float64_numpy(pair, kept, tmp_path):
    """U_b S_p V_p^T: its errors are rounding errors over the distances of singular values, here above 1e-2 s_1."""
    _, base, post = pair
    found, _ = _edit(pair[0], "break-left", tmp_path / "out", kept, roles="v", measure=False)
    base, post = (x[SQUARE].astype(np.float64) for x in (base, post))
    (ub, sb, vbt), (up, sp, vpt) = (np.linalg.svd(x) for x in (base, post))
    signs = np.where(np.sum(ub * up, 0) + np.sum(vbt * vpt, 1) < 0, -1.0, 1.0)
    # Vectors of a Gram matrix: eps s_1^2 over the distance of squares; left ones also take eps s_1 / s.
    squares = np.concatenate([-np.diff(sb**2) / sb[0] ** 2, -np.diff(sp**2) / sp[0] ** 2])
    tolerance = 32 * FLOAT / squares.min()
    assert tolerance < 1e-8
    np.testing.assert_allclose(found[SQUARE], (ub * signs * sp) @ vpt, atol=tolerance * sp[0])


def test_what_is_not_kept_yet_is_kept_by_the_edit(pair, decomposed, tmp_path):
    folder, (bases, _) = tmp_path / "bases", decomposed
    given = {"roles": "q", "measure": False}
    expected = _edit(pair[0], "keep-coordinated", tmp_path / "without", **given)
    for name, count in (("first", 1), ("next", 0)):
        bases.clear()
        _assert_same(_edit(pair[0], "keep-coordinated", tmp_path / name, folder, **given), expected)
        assert len(bases) == count
    # A comparison finds it too.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    polarax.compare(*pair[0], metrics="rotation", keep_base=folder, progress=False, roles="q")
    assert len(before) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_base_of_which_one_bit_is_another_is_not_found(pair, kept, decomposed, tmp_path):
    paths, base, _ = pair
    changed = base[TALL].copy()
    changed.view(np.uint16)[3, 2] ^= 1
    other = write_checkpoint(tmp_path / "base.safetensors", base | {TALL: changed})
    given = {"roles": "q", "measure": False}
    expected = _edit((other, paths[1]), "break-right", tmp_path / "without", **given)
    _assert_same(_edit((other, paths[1]), "break-right", tmp_path / "with", kept, **given), expected)
    assert decomposed[0] == [(1, *changed.shape)]


def test_a_base_that_is_not_finite_is_not_kept(pair, tmp_path):
    paths, base, post = pair
    changed = base[SQUARE].copy()
    changed[1, 2] = np.nan
    other = write_checkpoint(tmp_path / "base.safetensors", base | {SQUARE: changed})
    found, edited = _edit(
        (other, paths[1]), "break-left", tmp_path / "out", tmp_path / "bases", roles="v", measure=False
    )
    np.testing.assert_array_equal(found[SQUARE], post[SQUARE].astype(np.float64))
    assert edited.rows[0]["status"] == "NaN or Inf: left as it is"
    assert not (tmp_path / "bases").exists()


def test_the_program_for_a_kept_base_decomposes_the_post_alone(pair):
    base, post = (x[TALL] for x in pair[1:])
    with jax.enable_x64(True):
        begun = decompose_base(base[None], how=How("auto", "float64"))
        operands = base, post, np.zeros(2, np.uint32), np.float64(1), np.ones(1)
        given = {"kind": "replace-values", "measure": False}
        counts = [str(find_maps.trace(*operands, *more, **given).jaxpr).count(" eigh") for more in ((), (begun,))]
    assert 0 < 2 * counts[1] == counts[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind=scale-values", "--factor=2", "--nomeasure"], "scale-values that is not measured decomposes no base"),
        (["--kind=random-control", "--nomeasure"], "random-control that is not measured decomposes no base"),
        (["--kind=break-left", "--method=lapack"], "by the method 'gram' in float64 alone. Got method=lapack"),
    ],
)
def test_where_there_is_nothing_to_keep(pair, cli, tmp_path, arguments, words):
    both = [f"--base={pair[0][0]}", f"--post={pair[0][1]}", f"--out={tmp_path / 'out'}"]
    done = cli("edit", *both, f"--keep_base={tmp_path / 'bases'}", *arguments, NO_CACHE)
    assert done.code == 2 and "keep_base has nothing to keep here" in done.err and words in done.err, done
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_model_and_trees_have_no_kept_base(pair, tmp_path):
    with pytest.raises(polarax.UsageError, match="scale-values of one model decomposes no base"):
        _edit((None, pair[0][1]), "scale-values", tmp_path / "out", tmp_path / "bases")
    with pytest.raises(polarax.UsageError, match="keep_base are for checkpoints"):
        polarax.edit({"w": pair[1][TALL]}, {"w": pair[2][TALL]}, "break-left", keep_base=tmp_path)


def test_the_command_says_what_is_kept_beforehand(pair, cli, kept, tmp_path):
    both = [f"--base={pair[0][0]}", f"--post={pair[0][1]}", f"--out={tmp_path / 'out'}"]
    done = cli("edit", *both, f"--keep_base={kept}", "--kind=replace-values", "--roles=q", "--nomeasure", NO_CACHE)
    assert done.code == 0, done.err
    assert f"MiB of decomposed bases at {kept}" in done.err
