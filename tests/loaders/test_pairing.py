import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polarax
from polarax.loaders import CheckpointError, Pair, Pairing, Skipped, View, open_checkpoint, pair_checkpoints, pairing
from polarax.loaders.matrices import take_inventory
from polarax.loaders.pairing.tied import find_ties

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)


def checkpoint(**tensors):
    return open_checkpoint({name.replace("__", "."): array for name, array in tensors.items()})


def of_names(*names):
    return open_checkpoint({name: np.zeros((2, 3), np.float32) for name in names})


def matrix(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_a_pair_has_everything_that_is_known_without_reading():
    name = "model.layers.2.mlp.experts.1.up_proj.weight"
    base, post = {name: matrix(4, 3)}, {name: matrix(4, 3, dtype=BF16)}
    pairs, skipped = pair_checkpoints(open_checkpoint(base), open_checkpoint(post))
    view = View(name, (4, 3), layer=2, role="up", expert=1)
    assert pairs == [Pair(name, 2, "up", 1, (4, 3), F32, BF16, name, view, view, "float32", "bfloat16", 48, 24)]
    assert skipped == []


@pytest.mark.parametrize(
    ("base", "post", "reason"),
    [
        (matrix(2, 3), None, "only in base"),
        (None, matrix(2, 3), "only in post"),
        (matrix(2, 3), matrix(4, 3), "shapes differ: base (2, 3), post (4, 3)"),
        (matrix(2, 3), matrix(2, 3, 1), "shapes differ: base (2, 3), post (2, 3, 1)"),
        (matrix(3), matrix(3), "1-D: not a matrix"),
        (matrix(), matrix(), "0-D: not a matrix"),
        (matrix(2, 2, 2), matrix(2, 2, 2), "3-D: axes unknown (give them by --role_map)"),
        (matrix(1, 1, 2), matrix(1, 1, 2), "3-D: not a matrix"),
        (matrix(0, 3), matrix(0, 3), "empty"),
        (matrix(3, 0), matrix(3, 0), "empty"),
        (matrix(2, 3, dtype="i8"), matrix(2, 3, dtype="i8"), "not floating-point: int64"),
        (matrix(2, 3, dtype="?"), matrix(2, 3, dtype="?"), "not floating-point: bool"),
        (matrix(2, 3), matrix(2, 3, dtype="i1"), "not floating-point: base float32, post int8"),
        (matrix(2, 3, dtype="c8"), matrix(2, 3, dtype="c8"), "unsupported dtype complex64"),
        (matrix(2, 3, dtype="O"), matrix(2, 3), "unsupported dtype base object, post float32"),
    ],
)
def test_every_other_tensor_is_skipped_with_its_reason(base, post, reason):
    both = {"common": matrix(2, 2)}
    base = both | ({"w": base} if base is not None else {})
    post = both | ({"w": post} if post is not None else {})
    pairs, skipped = pair_checkpoints(open_checkpoint(base), open_checkpoint(post))
    assert [pair.name for pair in pairs] == ["common"]
    assert skipped == [Skipped("w", reason)]


def test_a_dtype_that_numpy_lacks(save_raw, tmp_path):
    header = {"w": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    stored = open_checkpoint(save_raw(tmp_path / "m.safetensors", header, bytes(4)))
    assert pair_checkpoints(stored, stored) == ([], [Skipped("w", "unsupported dtype F4")])


def test_a_quantised_tensor_that_one_side_has():
    post = checkpoint(w=matrix(2, 2), l__qweight=matrix(2, 2, dtype="i4"), l__scales=matrix(2, 2))
    _, skipped = pair_checkpoints(checkpoint(w=matrix(2, 2)), post)
    assert skipped[0] == Skipped("l.qweight", "quantised: GPTQ or AWQ; only in post")


def test_layers_are_in_numerical_order():
    names = [f"layers.{layer}.w{number}" for layer in (10, 2, 0, 1) for number in (10, 9)]
    pairs, _ = pair_checkpoints(of_names(*names), of_names(*reversed(names)))
    assert [pair.name for pair in pairs] == [
        f"layers.{layer}.w{number}" for layer in (0, 1, 2, 10) for number in (9, 10)
    ]


def test_numbers_of_any_length_are_in_numerical_order():
    numbers = ["0", "1", "9", "10", "99", "100", "5" * 40, "1" + "0" * 40, "2" + "0" * 5000]
    names = [f"w{number}{rest}" for number in numbers for rest in ("", ".a", ".a2", ".a10", "a", "b.7")]
    pairs, _ = pair_checkpoints(of_names(*names[::-1]), of_names(*names))
    assert [pair.name for pair in pairs] == names


def test_a_checkpoint_pairs_with_itself_as_with_its_like(tmp_path, save_raw):
    arrays = {
        **{f"model.layers.{i}.self_attn.{p}_proj.weight": matrix(4, 4) for i in range(11) for p in "qkvo"},
        "model.layers.0.self_attn.rotary.inv_freq": np.ones(4, np.float32),
        "l.qweight": matrix(2, 2, dtype="i4"),
        "l.scales": matrix(2, 2),
        "experts": np.ones((3, 4, 5), np.float32),
        "model.embed_tokens.weight": matrix(6, 4),
        "opt_state.mu": matrix(2, 2),
    }
    one, other = open_checkpoint(arrays), open_checkpoint({name: array.copy() for name, array in arrays.items()})
    itself, like = pair_checkpoints(one, one), pair_checkpoints(one, other)
    assert itself == like
    assert len(itself[0]) >= 45 and len(itself[1]) >= 4


def test_skipped_tensors_of_the_base_come_before_those_of_the_post():
    _, skipped = pair_checkpoints(of_names("c", "b.10", "b.9"), of_names("c", "a.10", "a.9"))
    assert [name for name, _ in skipped] == ["b.9", "b.10", "a.9", "a.10"]


BERT = [f"encoder.layer.{i}.attention.self.query.weight" for i in range(3)]


@pytest.mark.parametrize("prefix", ["bert.", "model.", "model.language_model."])
@pytest.mark.parametrize("side", ["base", "post"])
def test_a_prefix_on_one_side_is_seen_through(prefix, side):
    bare = of_names(*BERT, "head.weight")
    prefixed = of_names(*(prefix + name for name in BERT), "cls.weight")
    base, post = (prefixed, bare) if side == "base" else (bare, prefixed)
    pairs, skipped = pair_checkpoints(base, post)
    names = {pair.name: pair.name_post for pair in pairs}
    if side == "post":
        assert names == {name: prefix + name for name in BERT}
    else:
        assert names == {prefix + name: name for name in BERT}
    assert [(pair.layer, pair.role) for pair in pairs] == [(0, "q"), (1, "q"), (2, "q")]
    only = {"only in base", "only in post"}
    assert {name for name, _ in skipped} == {"head.weight", "cls.weight"}
    assert {reason for _, reason in skipped} == only


def test_equal_names_are_kept_beside_prefixed_ones():
    base, post = of_names("lm_head", *BERT), of_names("lm_head", *("model." + n for n in BERT))
    pairs, skipped = pair_checkpoints(base, post)
    assert {pair.name: pair.name_post for pair in pairs} == {
        "lm_head": "lm_head",
        **{name: "model." + name for name in BERT},
    }
    assert skipped == []


def test_a_prefix_is_of_a_part_of_a_model():
    base, post = of_names(*BERT, "x.w"), of_names(*BERT, "y.x.w")
    pairs, skipped = pair_checkpoints(base, post)
    assert [(pair.name, pair.matched_by) for pair in pairs] == [*((name, "name") for name in BERT), ("x.w", "prefix")]
    assert skipped == []


def test_two_prefixes_that_explain_as_much_are_no_match():
    post = of_names(*("encoder." + n for n in BERT), *("decoder." + n for n in BERT))
    pairs, skipped = pair_checkpoints(of_names(*BERT), post)
    assert pairs == []
    rows = dict(skipped)
    assert rows[BERT[0]] == f"ambiguous: decoder.{BERT[0]}, encoder.{BERT[0]} are like it"
    assert rows["decoder." + BERT[0]] == f"ambiguous: {BERT[0]} is like it"


def test_two_models_with_nothing_in_common():
    with pytest.raises(CheckpointError) as caught:
        pair_checkpoints(of_names("a.b", "a.c"), of_names("x.y", "x.z"))
    assert str(caught.value) == (
        "parameter tree (dict) and parameter tree (dict) have no tensor in common: the base has 'a.b', the post 'x.y'"
    )


def test_an_empty_checkpoint():
    with pytest.raises(CheckpointError, match="the base has no tensors, the post 'w'"):
        pair_checkpoints(of_names(), of_names("w"))


def test_common_names_without_a_matrix_are_the_callers_to_judge():
    norm = checkpoint(norm=matrix(3))
    assert pair_checkpoints(norm, norm) == ([], [Skipped("norm", "1-D: not a matrix")])


shapes = st.sampled_from([(), (3,), (2, 3), (3, 2), (0, 2), (2, 2, 2)])
arrays = st.builds(np.zeros, shapes, st.sampled_from([np.float32, BF16, np.int8]))
names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
trees = st.dictionaries(names, arrays, max_size=8)


@given(trees, trees)
def test_nothing_disappears(base, post):
    pairs, skipped, coverage = Pairing(open_checkpoint(base)).pair(open_checkpoint(post))
    for side, names in ((coverage.base, base), (coverage.post, post)):
        left_out = side.left_out.values()
        assert side.tensors == len(names) == side.compared_tensors + sum(part.tensors for part in left_out)
        weights = sum(array.size for array in names.values())
        assert side.weights == weights == side.compared_weights + sum(part.weights for part in left_out)
    assert {pair.name for pair in pairs} <= set(base)
    assert {pair.name_post for pair in pairs} <= set(post)
    assert set(base) | set(post) <= {name for row in pairs for name in (row.name, row.name_post)} | {
        row.name for row in skipped
    } | set(post)
    assert set(base) <= {pair.name for pair in pairs} | {row.name for row in skipped}


class TestSeveralPosts:
    @pytest.fixture
    def taken(self, monkeypatch):
        """The checkpoints of which an inventory was taken, in turn."""
        checkpoints = []

        def take(checkpoint, *args):
            checkpoints.append(checkpoint)
            return take_inventory(checkpoint, *args)

        monkeypatch.setattr(pairing, "take_inventory", take)
        return checkpoints

    def test_the_inventory_of_the_base_is_taken_once(self, taken):
        base = of_names("layers.0.q", "layers.1.q", "only.base")
        posts = [of_names("layers.0.q", "layers.1.q", f"only.{number}") for number in range(3)]
        shared = Pairing(base)
        found = [shared.pair(post) for post in posts]
        assert taken == [base, *posts]
        assert [tuple(one[:2]) for one in found] == [pair_checkpoints(base, post) for post in posts]

    def test_the_bytes_of_tied_tensors_of_the_base_are_looked_at_once(self, monkeypatch):
        looked_at = []

        def find(checkpoint, *args):
            looked_at.append(checkpoint)
            return find_ties(checkpoint, *args)

        monkeypatch.setattr(pairing, "find_ties", find)
        base, posts = of_names("layers.0.q"), [of_names("layers.0.q") for _ in range(3)]
        shared = Pairing(base)
        for post in posts:
            shared.pair(post)
        assert looked_at == [base, *posts]

    def test_in_a_comparison_of_several_posts(self, taken):
        base = of_names("layers.0.q", "layers.1.q")
        posts = {f"post{number}": of_names("layers.0.q", "layers.1.q") for number in range(3)}
        runs = polarax.compare(base, posts, metrics="change", progress=False)
        assert runs.labels == tuple(posts)
        assert taken == [base, *posts.values()]

    def test_the_base_itself_among_them(self, taken):
        base = of_names("layers.0.q")
        pairs, skipped, _ = Pairing(base).pair(base)
        assert [pair.name for pair in pairs] == ["layers.0.q"]
        assert skipped == []
        assert taken == [base]

    def test_a_base_without_a_configuration_is_listed_by_that_of_each_post(self, taken, save, tmp_path):
        """Of a fused matrix the configuration tells the parts."""
        name, size = "model.layers.0.self_attn.qkv_proj.weight", 24
        base = open_checkpoint({name: np.zeros((size, 8), np.float32)})
        posts = []
        for number, heads in enumerate((4, 4, 2)):
            (tmp_path / str(number)).mkdir()
            save(tmp_path / str(number) / "model.safetensors", {name: np.zeros((size, 8), np.float32)})
            config = {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": heads, "head_dim": 8 // heads}
            (tmp_path / str(number) / "config.json").write_text(json.dumps(config))
            posts.append(open_checkpoint(tmp_path / str(number)))
        shared = Pairing(base)
        found = [shared.pair(post) for post in posts]
        assert taken.count(base) == 2  # the first two posts have the same configuration
        assert [tuple(one[:2]) for one in found] == [pair_checkpoints(base, post) for post in posts]
        assert [pair.role for pair in found[0][0]] == ["q", "k", "v"]
