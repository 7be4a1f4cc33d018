"""Names behind other prefixes: which belong together, which don't, and of which that cannot be told."""

import pytest

from polarax.loaders.pairing import Match, match_names

LAYER = {"self_attn.q_proj.weight": (4, 4), "self_attn.o_proj.weight": (4, 4), "mlp.up_proj.weight": (6, 4)}
MODEL = {f"layers.{layer}.{name}": shape for layer in range(3) for name, shape in LAYER.items()}
MODEL |= {"embed_tokens.weight": (10, 4), "norm.weight": (4,)}
VISION = {f"blocks.{layer}.attn.{name}.weight": (3, 3) for layer in range(2) for name in ("qkv", "proj")}
VISION |= {"merger.mlp.0.weight": (5, 3), "merger.mlp.2.weight": (4, 5)}


def behind(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("base", "post"),
    [
        ("model.", "model.language_model."),
        ("model.", "language_model.model."),
        ("", "student."),
        ("policy.", "actor_module."),
        ("thinker.model.", "model."),
        ("0.auto_model.", "bert."),
        ("PaliGemma.llm.", "llm."),
    ],
)
def test_prefixes_on_either_side_are_found_from_the_names(base, post):
    for one, other in ((base, post), (post, base)):
        found = match_names(behind(one, MODEL), behind(other, MODEL))
        assert found.partners == {one + name: Match(other + name, "prefix") for name in MODEL}
        assert found.ambiguous == {}


def test_each_part_of_a_model_has_its_own_prefix():
    base = behind("model.", MODEL) | behind("visual.", VISION) | {"lm_head.weight": (10, 4)}
    post = behind("model.language_model.", MODEL) | behind("model.visual.", VISION) | {"lm_head.weight": (10, 4)}
    expected = {f"model.{name}": Match(f"model.language_model.{name}", "prefix") for name in MODEL}
    expected |= {f"visual.{name}": Match(f"model.visual.{name}", "prefix") for name in VISION}
    assert match_names(base, post).partners == expected | {"lm_head.weight": Match("lm_head.weight", "name")}


@pytest.mark.parametrize(
    "word", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "base_layer"]
)
def test_words_that_tools_wrap_around_modules(word):
    post = {name.replace("self_attn.", f"self_attn.{word}."): shape for name, shape in MODEL.items()}
    partners = match_names(MODEL, post).partners
    assert {name: match.name for name, match in partners.items()} == dict(zip(MODEL, post, strict=True))
    assert {match.matched_by for match in partners.values()} == {"name", "spelling"}


def test_a_layer_is_not_paired_with_another_one():
    """The post has the upper layers only: names that end alike are not enough."""
    post = {f"model.{name}": shape for name, shape in MODEL.items() if "layers.0." not in name}
    partners = match_names(MODEL, post).partners
    assert {name: match.name for name, match in partners.items()} == {
        name: f"model.{name}" for name in MODEL if "layers.0." not in name
    }


def test_shapes_tell_two_parts_apart():
    wide = {name: tuple(2 * size for size in shape) for name, shape in MODEL.items()}
    post = behind("talker.", wide) | behind("thinker.", MODEL)
    assert match_names(MODEL, post).partners == {name: Match(f"thinker.{name}", "prefix") for name in MODEL}


def test_of_two_candidates_none_is_chosen():
    post = behind("policy.", MODEL) | behind("reference.", MODEL)
    found = match_names(MODEL, post)
    assert found.partners == {}
    assert found.ambiguous["norm.weight"] == ("policy.norm.weight", "reference.norm.weight")
    assert found.ambiguous["policy.norm.weight"] == ("norm.weight",)


def test_two_spellings_of_one_name():
    found = match_names({"a.q_proj.weight": (2, 2)}, {"a.q_proj.kernel": (2, 2), "module.a.q_proj.weight": (2, 2)})
    assert found.partners == {}
    assert found.ambiguous["a.q_proj.weight"] == ("a.q_proj.kernel", "module.a.q_proj.weight")


def test_tensors_of_known_places_keep_to_them():
    base, post = {"x.layers.0.up.weight": (2, 2)}, {"y.rest.layers.0.up.weight": (2, 2)}
    assert match_names(base, post).partners
    places = {"x.layers.0.up.weight": (0, "up")}, {"y.rest.layers.0.up.weight": (24, "up")}
    assert match_names(base, post, None, None, *places).partners == {}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_alias_stands_for_the_tensor_that_is_stored(prefix):
    base = {"embed.weight": (4, 2), "lm_head.weight": (4, 2)}
    post = {f"{prefix}embed.weight": (4, 2)}
    alias = {f"{prefix}lm_head.weight": f"{prefix}embed.weight"}
    partners = match_names(base, post, {}, alias).partners
    own = Match(f"{prefix}embed.weight", "prefix" if prefix else "name")
    assert partners == {"embed.weight": own, "lm_head.weight": Match(f"{prefix}embed.weight", "alias")}
    assert match_names(post, base, alias, {}).partners == {f"{prefix}embed.weight": own._replace(name="embed.weight")}
    assert match_names(post, {"lm_head.weight": (4, 2)}, alias, {}).partners == {
        f"{prefix}embed.weight": Match("lm_head.weight", "alias")
    }


@pytest.mark.parametrize("spell", ["{0}.{1}.q.weight", "part{0}.w{1}", "{0:x}q{1}z.kernel"])
def test_ninety_thousand_names_behind_another_prefix(spell):
    base = {spell.format(number // 300, number % 300): (2, 2) for number in range(90_000)}
    post = behind("other.", base)
    found = match_names(base, post).partners
    assert len(found) == len(base)
    assert all(match.name == f"other.{name}" for name, match in found.items())


def test_names_that_have_little_in_common():
    assert match_names({"a.b": (2,), "a.c": (2,)}, {"x.y": (2,), "x.z": (2,)}).partners == {}
    assert match_names({"b.0": (2,), "b.1": (2,)}, {"a.0": (2,), "a.1": (2,)}).partners == {}
    long = "x." + "y" * 10_000 + ".weight"
    assert match_names({long: (2,)}, {"p." + long: (2,)}).partners == {long: Match("p." + long, "prefix")}
