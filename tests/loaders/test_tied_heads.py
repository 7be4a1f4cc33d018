"""Heads that are the embedding in one checkpoint and a matrix of their own in the other."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from polarax.loaders import Pairing, open_checkpoint

RNG = np.random.default_rng(5)
EMBEDDING, HEAD, HEAD_OF_OTHER = (RNG.normal(size=(12, 8)).astype(np.float32) for _ in range(3))
EMBED_NAME, HEAD_NAME = "model.embed_tokens.weight", "lm_head.weight"
TIED, UNTIED = ({"model_type": "qwen2", "tie_word_embeddings": tied} for tied in (True, False))
BODY = {"model.layers.0.mlp.up_proj.weight": RNG.normal(size=(16, 8)).astype(np.float32)}


@pytest.fixture
def checkpoint(tmp_path):
    def write(folder, tensors, config=None, aliases=None):
        (tmp_path / folder).mkdir()
        save_file(BODY | tensors, tmp_path / folder / "model.safetensors", {"format": "pt", **(aliases or {})})
        if config is not None:
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(str(tmp_path / folder))

    return write


def ends(paired):
    """Which tensors the embedding and the head are compared in, and how they were found."""
    return {
        pair.name: (pair.base.tensor, pair.post.tensor, pair.role, pair.matched_by)
        for pair in paired.pairs
        if pair.role in ("head", "embed")
    }


EMBED = (EMBED_NAME, EMBED_NAME, "embed", "name")


@pytest.mark.parametrize("config", [TIED, UNTIED])
def test_a_head_of_its_own_is_compared_with_the_embedding_that_was_the_head(checkpoint, config):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING}, TIED)
    paired = Pairing(base).pair(checkpoint("post", {EMBED_NAME: EMBEDDING, HEAD_NAME: HEAD}, config))
    assert ends(paired) == {EMBED_NAME: EMBED, HEAD_NAME: (EMBED_NAME, HEAD_NAME, "head", "alias")}
    assert paired.skipped == []
    assert f"base: {EMBED_NAME} is its head, too: the post's {HEAD_NAME} is compared with it" in paired.coverage.notes
    sides = paired.coverage.base, paired.coverage.post
    assert [side.compared_weights for side in sides] == [side.weights for side in sides]
    assert [side.unpaired_weights for side in sides] == [0, 0]


def test_a_head_that_became_the_embedding(checkpoint):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING, HEAD_NAME: HEAD}, UNTIED)
    paired = Pairing(base).pair(checkpoint("post", {EMBED_NAME: EMBEDDING}, TIED))
    assert ends(paired) == {EMBED_NAME: EMBED, HEAD_NAME: (HEAD_NAME, EMBED_NAME, "head", "alias")}


def test_the_metadata_of_either_side_say_it_too(checkpoint):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING}, aliases={HEAD_NAME: EMBED_NAME})
    post = checkpoint("post", {EMBED_NAME: EMBEDDING, HEAD_NAME: HEAD})
    assert ends(Pairing(base).pair(post))[HEAD_NAME] == (EMBED_NAME, HEAD_NAME, "head", "alias")
    assert ends(Pairing(post).pair(base))[HEAD_NAME] == (HEAD_NAME, EMBED_NAME, "head", "alias")


def test_an_embedding_that_is_stored_as_the_head_alone(checkpoint):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING, HEAD_NAME: HEAD}, UNTIED)
    post = checkpoint("post", {HEAD_NAME: HEAD_OF_OTHER}, TIED, {EMBED_NAME: HEAD_NAME})
    paired = Pairing(base).pair(post)
    assert {(name, post) for name, (_, post, *_) in ends(paired).items()} == {
        (EMBED_NAME, HEAD_NAME),
        (HEAD_NAME, HEAD_NAME),
    }
    assert paired.skipped == []


def test_one_that_is_tied_in_both_is_compared_once(checkpoint):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING, HEAD_NAME: EMBEDDING}, TIED)
    post = checkpoint("post", {HEAD_NAME: HEAD}, TIED, {EMBED_NAME: HEAD_NAME})
    assert len(ends(Pairing(base).pair(post))) == 1
    alone = checkpoint("alone", {EMBED_NAME: HEAD}, TIED)
    paired = Pairing(base).pair(alone)
    assert ends(paired) == {EMBED_NAME: EMBED}
    assert [(row.name, row.reason) for row in paired.skipped] == [(HEAD_NAME, f"tied to {EMBED_NAME}")]


@pytest.mark.parametrize(
    ("config", "head"),
    [(UNTIED, HEAD), (None, HEAD), (TIED, HEAD[:1])],
    ids=["configured apart", "nothing is known", "classifier"],
)
def test_else_a_head_is_only_in_one(checkpoint, config, head):
    base = checkpoint("base", {EMBED_NAME: EMBEDDING}, config)
    paired = Pairing(base).pair(checkpoint("post", {EMBED_NAME: EMBEDDING, HEAD_NAME: head}, config))
    assert ends(paired) == {EMBED_NAME: EMBED}
    assert [(row.name, row.reason) for row in paired.skipped] == [(HEAD_NAME, "only in post")]
