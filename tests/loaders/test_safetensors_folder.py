"""Which files of a folder are the model: what tools leave behind, and what transformers makes of it."""

import json

import numpy as np
import pytest
import safetensors.numpy

from polarax.loaders import CheckpointError, open_checkpoint
from polarax.loaders.formats.safetensors_folder import choose, is_index, shard_set
from polarax.loaders.scaled_checkpoint import ScaledCheckpoint

INDEX = "model.safetensors.index.json"


def shard(number, count, stem="model", tail=""):
    return f"{stem}-{number:05}-of-{count:05}{tail}.safetensors"


def put(folder, name, **tensors):
    """Writes a file of 1 x 1 matrices."""
    folder.mkdir(exist_ok=True)
    arrays = {tensor: np.full((1, 1), value, np.float32) for tensor, value in tensors.items()}
    safetensors.numpy.save_file(arrays, folder / name)


def put_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def put_set(folder, count, start=1, stem="model", tail="", scale=1):
    """Numbered files, each with a tensor named after its place; gives what an index says of them."""
    for place in range(count):
        put(folder, shard(start + place, count, stem, tail), **{f"t{place}": scale * (place + 1)})
    return {f"t{place}": shard(start + place, count, stem, tail) for place in range(count)}


def values(checkpoint):
    return {name: float(checkpoint.read(name).result()[0, 0]) for name in checkpoint.names()}


def refused(source, problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)


class TestStaleIndex:
    @pytest.mark.parametrize("shards_left", [True, False])
    def test_a_new_file_goes_before_an_old_index(self, tmp_path, shards_left):
        weight_map = put_set(tmp_path, 2)
        put_index(tmp_path, weight_map)
        put(tmp_path, "model.safetensors", t0=7, t1=8)
        for file in weight_map.values():
            if not shards_left:
                (tmp_path / file).unlink()
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"t0": 7, "t1": 8}
        assert checkpoint.index_file is None
        assert (
            checkpoint.notes[0]
            == f"{INDEX} is not followed: model.safetensors beside it goes first, as in transformers"
        )
        assert len(checkpoint.notes) == 1 + shards_left

    def test_an_index_of_the_file_itself_is_no_contradiction(self, tmp_path):
        put(tmp_path, "model.safetensors", a=1)
        put_index(tmp_path, {"a": "model.safetensors"})
        assert open_checkpoint(tmp_path).notes == ()

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {"a": "../x"}}'])
    def test_an_old_index_need_not_even_be_one(self, tmp_path, text):
        put(tmp_path, "model.safetensors", a=1)
        (tmp_path / INDEX).write_text(text)
        assert values(open_checkpoint(tmp_path)) == {"a": 1}

    def test_a_complete_set_takes_the_place_of_shards_that_are_gone(self, tmp_path):
        put_index(tmp_path, {"t0": shard(1, 2), "t1": shard(2, 2)})
        put_set(tmp_path, 3)
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"t0": 1, "t1": 2, "t2": 3}
        (note,) = checkpoint.notes
        assert (
            note
            == f"{INDEX} names {shard(1, 2)}, {shard(2, 2)}, not there: {shard(1, 3)} to {shard(3, 3)} are read instead"
        )

    def test_and_some_of_the_old_shards_may_still_be_there(self, tmp_path):
        put_index(tmp_path, {"t0": shard(1, 2), "t1": shard(2, 2)})
        put(tmp_path, shard(1, 2), t0=9)
        put_set(tmp_path, 3)
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"t0": 1, "t1": 2, "t2": 3}
        assert checkpoint.notes[1] == f"{shard(1, 2)}: beside the model, and not read"

    def test_two_complete_sets_are_named_and_none_is_chosen(self, tmp_path):
        put_index(tmp_path, {"t0": shard(1, 4)})
        put_set(tmp_path, 2)
        put_set(tmp_path, 3)
        refused(tmp_path, rf"several safetensors checkpoints .*: {shard(1, 2)} to {shard(2, 2)}; {shard(1, 3)} to ")

    def test_the_index_goes_before_another_complete_set(self, tmp_path):
        put_set(tmp_path, 3, scale=5)
        put_index(tmp_path, put_set(tmp_path, 2))
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"t0": 1, "t1": 2}
        assert checkpoint.notes == (f"{shard(1, 3)}, {shard(2, 3)}, {shard(3, 3)}: beside the model, and not read",)

    def test_an_index_that_is_named_is_followed_or_refused(self, tmp_path):
        put(tmp_path, "model.safetensors", t0=7)
        put_index(tmp_path, put_set(tmp_path, 2))
        assert values(open_checkpoint(tmp_path / INDEX)) == {"t0": 1, "t1": 2}
        (tmp_path / shard(2, 2)).unlink()
        refused(tmp_path / INDEX, rf"{shard(2, 2)}: no such file; {INDEX} names it")


class TestMissingParts:
    @pytest.mark.parametrize("gone", [1, 2, 3])
    def test_a_set_without_one_of_its_files(self, tmp_path, gone):
        put_set(tmp_path, 3)
        (tmp_path / shard(gone, 3)).unlink()
        left = next(number for number in (1, 2, 3) if number != gone)
        problem = rf"/{shard(gone, 3)}: no such file; {shard(left, 3)} is one of 3 files"
        refused(tmp_path, problem)
        for number in {1, 2, 3} - {gone}:
            refused(tmp_path / shard(number, 3), rf"/{shard(gone, 3)}: no such file")

    def test_named_by_an_index(self, tmp_path):
        put_index(tmp_path, put_set(tmp_path, 2))
        (tmp_path / shard(2, 2)).unlink()
        refused(tmp_path, rf"/{shard(2, 2)}: no such file; {INDEX} names it")

    def test_an_index_that_names_a_part_alone_says_so(self, tmp_path):
        put(tmp_path, shard(1, 2), t0=1)
        put_index(tmp_path, {"t0": shard(1, 2)})
        assert open_checkpoint(tmp_path).notes == (f"{INDEX} does not name {shard(2, 2)}, which is not there either",)

    def test_one_file_stands_for_its_set(self, tmp_path):
        put_set(tmp_path, 2)
        checkpoint = open_checkpoint(tmp_path / shard(2, 2))
        assert values(checkpoint) == {"t0": 1, "t1": 2}
        assert checkpoint.notes == (f"{shard(2, 2)} is one of 2 files, and all of them are read",)

    def test_a_set_of_one(self, tmp_path):
        put_set(tmp_path, 1)
        for source in (tmp_path, tmp_path / shard(1, 1)):
            assert (values(open_checkpoint(source)), open_checkpoint(source).notes) == ({"t0": 1}, ())

    def test_numbers_from_zero(self, tmp_path):
        put_set(tmp_path / "a", 2, start=0)
        assert values(open_checkpoint(tmp_path / "a")) == {"t0": 1, "t1": 2}
        # As gpt-oss is published: from 0 up to the count.
        for number in range(3):
            put(tmp_path / "b", shard(number, 2), **{f"t{number}": number})
        assert set(values(open_checkpoint(tmp_path / "b" / shard(1, 2)))) == {"t0", "t1", "t2"}
        (tmp_path / "b" / shard(1, 2)).unlink()
        refused(tmp_path / "b", rf"{shard(1, 2)}: no such file; {shard(0, 2)} is one of 3 files")

    def test_counts_of_another_width_are_named_as_they_are(self):
        given = shard_set("model-00001-of-000163.safetensors", ["model-00002-of-000163.safetensors"])
        assert given.missing() == "model-00003-of-000163.safetensors"
        assert shard_set("m_1-of-2.safetensors").missing() == "m_2-of-2.safetensors"
        assert shard_set("model.safetensors") is shard_set("7-of-9-lives.safetensors") is None


class TestOthersBeside:
    def test_mistrals_files_are_left_for_those_of_transformers(self, tmp_path):
        put(tmp_path, "consolidated.safetensors", w=9)
        put_set(tmp_path, 2)
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2}
        put_index(tmp_path, {"t0": shard(1, 2), "t1": shard(2, 2)})
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2}
        put(tmp_path, "model.safetensors", t0=3)
        assert values(open_checkpoint(tmp_path)) == {"t0": 3}
        assert values(open_checkpoint(tmp_path / "consolidated.safetensors")) == {"w": 9}

    def test_and_opened_where_they_are_alone(self, tmp_path):
        put(tmp_path / "file", "consolidated.safetensors", w=9)
        assert values(open_checkpoint(tmp_path / "file")) == {"w": 9}
        weight_map = put_set(tmp_path / "shards", 2, stem="consolidated")
        put_index(tmp_path / "shards", weight_map, "consolidated.safetensors.index.json")
        assert values(open_checkpoint(tmp_path / "shards")) == {"t0": 1, "t1": 2}

    @pytest.mark.parametrize(
        "adapter", ["adapter_model.safetensors", "adapters.safetensors", "pytorch_lora_weights.safetensors"]
    )
    def test_an_adapter(self, tmp_path, adapter):
        put(tmp_path, adapter, lora=2)
        assert values(open_checkpoint(tmp_path)) == {"lora": 2}
        assert open_checkpoint(tmp_path).notes == ()
        put(tmp_path, "weights.safetensors", a=1)
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"a": 1}
        assert checkpoint.notes == (f"{adapter}: an adapter beside the model, which is not added to it",)
        put_set(tmp_path, 2)
        (tmp_path / "weights.safetensors").unlink()
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2}
        assert values(open_checkpoint(tmp_path / adapter)) == {"lora": 2}

    def test_the_last_of_several_saved_adapters(self, tmp_path):
        for name, value in (("0000100_adapters", 1), ("0000200_adapters", 2), ("adapters", 3)):
            put(tmp_path, f"{name}.safetensors", lora=value)
        assert values(open_checkpoint(tmp_path)) == {"lora": 3}

    @pytest.mark.parametrize(
        "name",
        ["optimizer", "optimizer_state", "optimizer-00001-of-00002", "scheduler", "random_states_0", "rng_state"],
    )
    def test_training_states_are_no_models(self, tmp_path, name):
        put(tmp_path, f"{name}.safetensors", a=5)
        refused(tmp_path, rf"no checkpoint there; .*; {name}\.safetensors is no model")
        put(tmp_path, "weights.safetensors", a=1)
        assert (values(open_checkpoint(tmp_path)), open_checkpoint(tmp_path).notes) == ({"a": 1}, ())

    def test_unrelated_models_are_named(self, tmp_path):
        put(tmp_path, "first.safetensors", a=1, b=1)
        put(tmp_path, "second.safetensors", b=2)
        refused(
            tmp_path, r"several safetensors checkpoints; name one of them: first.*, second.* \(both have tensor 'b'\)"
        )

    def test_parts_under_names_of_their_own(self, tmp_path):
        put(tmp_path, "language_model.safetensors", a=1)
        put_set(tmp_path, 2, stem="vision_tower")
        assert values(open_checkpoint(tmp_path)) == {"a": 1, "t0": 1, "t1": 2}
        (tmp_path / shard(1, 2, "vision_tower")).unlink()
        refused(tmp_path, rf"{shard(1, 2, 'vision_tower')}: no such file")

    def test_leftovers_of_an_older_set(self, tmp_path):
        put(tmp_path, shard(1, 2), t0=9)
        put_set(tmp_path, 3)
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2, "t2": 3}


class TestVariants:
    def test_the_plain_model_goes_first(self, tmp_path):
        put(tmp_path, "model.fp16.safetensors", a=2)
        put_set(tmp_path, 2, stem="model.bf16")
        put(tmp_path, "model.safetensors", a=1)
        checkpoint = open_checkpoint(tmp_path)
        assert values(checkpoint) == {"a": 1}
        assert "model.fp16.safetensors" in checkpoint.notes[0]

    @pytest.mark.parametrize(("stem", "tail"), [("model.fp16", ""), ("model", ".fp16")])
    def test_a_variant_alone(self, tmp_path, stem, tail):
        put_set(tmp_path, 2, stem=stem, tail=tail)
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2}
        (tmp_path / shard(2, 2, stem, tail)).unlink()
        refused(tmp_path, rf"{shard(2, 2, stem, tail)}: no such file")

    @pytest.mark.parametrize("name", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"])
    def test_its_index(self, tmp_path, name):
        put_index(tmp_path, put_set(tmp_path, 2, stem="model.fp16"), name)
        for source in (tmp_path, tmp_path / name):
            checkpoint = open_checkpoint(source)
            assert (values(checkpoint), checkpoint.index_file) == ({"t0": 1, "t1": 2}, name)

    def test_two_variants_are_named(self, tmp_path):
        put(tmp_path, "model.fp16.safetensors", a=2)
        put(tmp_path, "model.bf16.safetensors", a=3)
        refused(tmp_path, r"name one of them: model\.bf16\.safetensors, model\.fp16\.safetensors")

    def test_diffusers(self, tmp_path):
        put(tmp_path, "diffusion_pytorch_model.fp16.safetensors", a=2)
        put_set(tmp_path, 2, stem="diffusion_pytorch_model")
        assert values(open_checkpoint(tmp_path)) == {"t0": 1, "t1": 2}
        put(tmp_path, "diffusion_pytorch_model.safetensors", a=1)
        assert values(open_checkpoint(tmp_path)) == {"a": 1}


def test_what_an_index_is_called():
    assert is_index("a.safetensors.index.json") and is_index("a.safetensors.index.fp16.json")
    assert not is_index("a.safetensors") and not is_index("model_index.json") and not is_index("a.bin.index.json")


def test_a_choice_reads_no_index_where_none_is_needed():
    def read(index):
        raise AssertionError(index)

    assert choose("m/", ["config.json", "model.safetensors"], read).files == ("model.safetensors",)
    assert choose("m/", ["config.json"], read) is None


class TestOverTheWeb:
    """A server tells no list: names are tried, those of transformers in its order."""

    def test_the_file_goes_before_the_index(self, web):
        weight_map = put_set(web.root, 2)
        put_index(web.root, weight_map)
        assert values(open_checkpoint(web.url)) == {"t0": 1, "t1": 2}
        put(web.root, "model.safetensors", t0=7)
        checkpoint = open_checkpoint(web.url)
        assert values(checkpoint) == {"t0": 7}
        assert "is not followed" in checkpoint.notes[0]

    def test_a_page_for_whatever_is_asked_is_no_index(self, web):
        put(web.root, "model.safetensors", t0=7)
        (web.root / INDEX).write_text("<html>")
        assert open_checkpoint(web.url).notes == ()

    @pytest.mark.parametrize("start", [0, 1])
    def test_one_file_stands_for_its_set(self, web, start):
        put_set(web.root, 2, start)
        given = web.url + shard(1, 2)
        assert values(open_checkpoint(given)) == {"t0": 1, "t1": 2}
        (web.root / shard(0 if start == 0 else 2, 2)).unlink()
        refused(given, rf"{shard(2, 2)}: no such file")


class TestAliases:
    """safetensors.torch.save_model writes down the names that it leaves out: {left out: kept}."""

    def metadata(self, folder, metadata, **tensors):
        arrays = {name.replace("__", "."): np.asarray(value) for name, value in tensors.items()}
        safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata=metadata)

    def test_a_head_that_was_left_out(self, tmp_path):
        entries = {"lm_head.weight": "embed.weight", "format": "pt", "embed.weight": "other", "x": "not.there"}
        self.metadata(tmp_path, entries, embed__weight=np.ones((2, 2), np.float32))
        assert open_checkpoint(tmp_path).aliases == {"lm_head.weight": "embed.weight"}

    def test_across_shards(self, tmp_path):
        put_set(tmp_path, 2)
        safetensors.numpy.save_file(
            {"t1": np.ones((1, 1), np.float32)}, tmp_path / shard(2, 2), metadata={"head": "t0"}
        )
        assert open_checkpoint(tmp_path).aliases == {"head": "t0"}

    def test_others_have_none(self):
        checkpoint = open_checkpoint({"a": np.ones((2, 2))})
        assert checkpoint.aliases == {} and checkpoint.notes == ()

    def test_scaled_weights_keep_them(self, tmp_path):
        self.metadata(
            tmp_path,
            {"b.weight": "a.weight", "b.weight_scale": "a.weight_scale"},
            a__weight=np.ones((4, 4), np.int8),
            a__weight_scale=np.ones((4, 1), np.float32),
        )
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a.weight": "old.safetensors"}}))
        checkpoint = open_checkpoint(tmp_path)
        assert isinstance(checkpoint, ScaledCheckpoint)
        assert checkpoint.aliases == {"b.weight": "a.weight"}
        assert checkpoint.notes == checkpoint.stored.notes != ()
