"""Low-rank adapters against NumPy in float64: W + scale B A, of models with adapters in them and of adapters alone."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import CheckpointError, Wanted, on_base, open_checkpoint, pair_checkpoints, read_views
from polarax.loaders.checkpoint import BASE_OWN

F32 = np.float32
BF16 = ml_dtypes.bfloat16
PEFT = "base_model.model."
OUT, IN, RANK, TOKENS = 48, 32, 4, 64
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
INDICES = [None, slice(5, 23), slice(None, None, -3), (slice(1, 3), slice(2, 9, 2)), (slice(None), slice(20, None))]


def numbers(*shape, seed=0, dtype=F32):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / 6).astype(dtype)


def model(layers=2, dtype=F32):
    tensors = {"model.embed_tokens.weight": numbers(TOKENS, IN, dtype=dtype)}
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        tensors |= {
            f"{stem}self_attn.{name}_proj.weight": numbers(IN, IN, seed=layer + 10 * place, dtype=dtype)
            for place, name in enumerate("qkvo")
        }
        tensors[f"{stem}mlp.up_proj.weight"] = numbers(OUT, IN, seed=layer, dtype=dtype)
        tensors[f"{stem}mlp.down_proj.weight"] = numbers(IN, OUT, seed=layer, dtype=dtype)
        tensors[f"{stem}input_layernorm.weight"] = np.ones(IN, dtype)
    return tensors


def factors(weight, rank=RANK, seed=1, dtype=F32):
    """A and B of an adapter, as PEFT keeps them."""
    out, inputs = weight.shape
    return numbers(rank, inputs, seed=seed, dtype=dtype), numbers(out, rank, seed=seed + 1, dtype=dtype)


def adapted(weight, a, b, scale):
    """What they mean, with every number in float64 until the end."""
    wide = np.float64
    return (weight.astype(wide) + scale * (b.astype(wide) @ a.astype(wide))).astype(F32)


@pytest.fixture
def folder(save, tmp_path):
    def write(name, tensors, config=None, file="model.safetensors"):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        save(place / file, {key: np.ascontiguousarray(array) for key, array in tensors.items()})
        if config is not None:
            (place / "adapter_config.json").write_text(json.dumps(config))
        return str(place)

    return write


def unmerged(tensors, targets, adapter="default", **kinds):
    """A full model as PEFT's state_dict has it, and its factors by the weight's name."""
    stored, made = {}, {}
    for name, weight in tensors.items():
        stem = PEFT + name.removesuffix(".weight")
        if any(target in name for target in targets):
            made[name] = factors(weight, **kinds)
            stored[f"{stem}.base_layer.weight"] = weight
            stored[f"{stem}.lora_A.{adapter}.weight"], stored[f"{stem}.lora_B.{adapter}.weight"] = made[name]
        else:
            stored[PEFT + name] = weight
    return stored, made


def alone(tensors, targets, **kinds):
    """An adapter as PEFT saves it, and its factors by the weight's name."""
    made = {name: factors(weight, **kinds) for name, weight in tensors.items() if any(t in name for t in targets)}
    stored = {}
    for name, (a, b) in made.items():
        stem = PEFT + name.removesuffix(".weight")
        stored |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    return stored, made


def base_layer(name):
    return f"{PEFT}{name.removesuffix('.weight')}.base_layer.weight"


@pytest.mark.parametrize("dtype", [F32, BF16, np.float16])
def test_a_weight_with_its_factors_beside_it_is_their_sum(folder, dtype):
    tensors = model(dtype=dtype)
    stored, made = unmerged(tensors, ["_proj"], dtype=dtype)
    checkpoint = open_checkpoint(folder("post", stored, CONFIG))
    assert not any("lora_" in name for name in checkpoint.names())
    for name, (a, b) in made.items():
        expected = adapted(tensors[name], a, b, 2)
        own = base_layer(name)
        assert checkpoint.dtype(own) == F32
        assert checkpoint.dtype_name(own) == f"{np.dtype(dtype).name} + LoRA"
        assert checkpoint.is_decoded(own)
        assert checkpoint.nbytes(own) == tensors[name].nbytes + a.nbytes + b.nbytes
        for index in INDICES:
            wanted = expected if index is None else expected[index]
            np.testing.assert_array_equal(checkpoint.read(own, index).result(), wanted, strict=True)
            out = np.full((*wanted.shape[:-1], 2 * wanted.shape[-1]), np.nan, F32)[..., ::2]  # not contiguous
            assert checkpoint.read_into(own, out, index).result() is out
            np.testing.assert_array_equal(out, wanted)
    norm = PEFT + "model.layers.0.input_layernorm.weight"
    assert checkpoint.dtype(norm) == np.dtype(dtype)
    np.testing.assert_array_equal(checkpoint.read(norm).result(), np.ones(IN, dtype))
    assert checkpoint.notes == (f"{len(made)} weights are read with the LoRA factors beside them added",)
    assert not checkpoint.unusable


def test_many_are_read_at_once_and_only_what_is_needed(folder):
    tensors = model()
    stored, made = unmerged(tensors, ["up_proj"])
    checkpoint = open_checkpoint(folder("post", stored, CONFIG))
    names = list(made)
    wanted = [Wanted(base_layer(names[0]), slice(0, 3)), Wanted(PEFT + "model.embed_tokens.weight"),
              Wanted(base_layer(names[1]), None, np.empty((OUT, IN), F32))]  # fmt: skip
    reads = [read.result() for read in checkpoint.read_many(wanted)]
    np.testing.assert_array_equal(reads[0], adapted(tensors[names[0]], *made[names[0]], 2)[:3])
    np.testing.assert_array_equal(reads[1], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(reads[2], adapted(tensors[names[1]], *made[names[1]], 2))
    # Three rows of the weight and of B, and all of A.
    assert checkpoint.read_bytes(wanted[0]) == 4 * (3 * IN + 3 * RANK + RANK * IN)
    with pytest.raises(CheckpointError, match="has no tensor"):
        checkpoint.read(f"{PEFT}model.layers.0.mlp.up_proj.lora_A.default.weight")
    with pytest.raises(ValueError, match="out must be float32"):
        checkpoint.read_into(base_layer(names[0]), np.empty((OUT, IN), np.float64))


def test_a_sum_longer_than_what_is_made_at_a_time(folder):
    weight = numbers(300, 500)
    a, b = factors(weight, 16)
    stored = {"x.base_layer.weight": weight, "x.lora_A.d.weight": a, "x.lora_B.d.weight": b}
    checkpoint = open_checkpoint(folder("post", stored, CONFIG | {"r": 16}))
    np.testing.assert_array_equal(checkpoint.read("x.base_layer.weight").result(), adapted(weight, a, b, 0.5))


def test_the_fingerprint_tells_scales_apart(folder):
    stored, _ = unmerged(model(), ["q_proj"])
    one = open_checkpoint(folder("one", stored, CONFIG))
    two = open_checkpoint(folder("two", stored, CONFIG | {"lora_alpha": 9}))
    assert one.fingerprint() == open_checkpoint(one.location).fingerprint() != two.fingerprint()


SCALES = {
    "alpha over rank": ({"lora_alpha": 16}, 4, 4),
    "no alpha pattern that fits": ({"alpha_pattern": {"k_proj": 99}}, 4, 2),
    "alpha pattern": ({"alpha_pattern": {"self_attn.q_proj": 99}}, 4, 99 / 4),
    "alpha pattern of one layer": ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 99}}, 4, 99 / 4),
    "alpha pattern as a regular expression": ({"alpha_pattern": {r"layers\.[01]\.self_attn\.[qk]_proj": 12}}, 4, 3),
    "rank pattern": ({"rank_pattern": {"q_proj": 8}}, 8, 1),
    "rank-stabilised": ({"use_rslora": True}, 4, 4),
    "rank-stabilised, rank pattern": ({"use_rslora": True, "rank_pattern": {"q_proj": 9}}, 9, 8 / math.sqrt(9)),
}


@pytest.mark.parametrize("case", SCALES)
def test_scales(folder, case):
    settings, rank, scale = SCALES[case]
    tensors = model()
    name = "model.layers.0.self_attn.q_proj.weight"
    stored, made = unmerged(tensors, [name], rank=rank)
    expected = adapted(tensors[name], *made[name], scale)
    checkpoint = open_checkpoint(folder("full", stored, CONFIG | settings))
    np.testing.assert_array_equal(checkpoint.read(base_layer(name)).result(), expected)
    stored, made = alone(tensors, [name], rank=rank)
    base = open_checkpoint(folder("base", tensors))
    post = on_base(open_checkpoint(folder("post", stored, CONFIG | settings, "adapter_model.safetensors")), base)
    np.testing.assert_array_equal(post.read(name).result(), expected)


@pytest.mark.parametrize("square", [False, True])
def test_a_weight_that_is_stored_as_in_by_out(folder, square):
    """GPT-2's Conv1D, which PEFT calls fan_in_fan_out: the product is transposed."""
    weight = numbers(IN, IN if square else 3 * IN)  # (in, out)
    a, b = factors(weight.T)
    stored = {
        f"{PEFT}transformer.h.0.attn.c_attn.lora_A.weight": a,
        f"{PEFT}transformer.h.0.attn.c_attn.lora_B.weight": b,
    }
    name = "transformer.h.0.attn.c_attn.weight"
    base = open_checkpoint(folder("base", {name: weight}))
    for place, said in enumerate([True] if square else [True, False]):
        config = CONFIG | {"fan_in_fan_out": said}
        post = on_base(open_checkpoint(folder(f"post{place}", stored, config, "adapter_model.safetensors")), base)
        expected = adapted(weight.T, a, b, 2).T
        for index in INDICES:
            wanted = expected if index is None else expected[index]
            np.testing.assert_array_equal(post.read(name, index).result(), wanted)


def test_embeddings_have_their_factors_the_other_way_round(folder):
    tensors = model()
    weight = tensors["model.embed_tokens.weight"]
    a, b = numbers(RANK, TOKENS, seed=5), numbers(IN, RANK, seed=6)
    expected = adapted(weight, b.T, a.T, 2)
    full = {"model.embed_tokens.base_layer.weight": weight, "model.embed_tokens.lora_embedding_A.default": a,
            "model.embed_tokens.lora_embedding_B.default": b}  # fmt: skip
    checkpoint = open_checkpoint(folder("full", full, CONFIG))
    assert checkpoint.names() == ("model.embed_tokens.base_layer.weight",)
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.base_layer.weight").result(), expected)
    stem = f"{PEFT}model.embed_tokens"
    stored = {f"{stem}.lora_embedding_A": a, f"{stem}.lora_embedding_B": b}
    base = open_checkpoint(folder("base", tensors))
    post = on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), base)
    np.testing.assert_array_equal(post.read("model.embed_tokens.weight", slice(9, 40)).result(), expected[9:40])
    # PEFT saves the weight of an adapted embedding along: the vocabulary may have grown.
    grown, a = numbers(TOKENS + 8, IN, seed=9), numbers(RANK, TOKENS + 8, seed=7)
    stored = {f"{stem}.base_layer.weight": grown, f"{stem}.lora_embedding_A": a, f"{stem}.lora_embedding_B": b}
    post = on_base(open_checkpoint(folder("grown", stored, CONFIG, "adapter_model.safetensors")), base)
    expected = adapted(grown, b.T, a.T, 2)
    np.testing.assert_array_equal(post.read("model.embed_tokens.weight").result(), expected)


def test_an_adapter_alone_makes_a_model_of_its_base(folder):
    tensors = model(dtype=BF16)
    stored, made = alone(tensors, ["q_proj", "down_proj"])
    stored[f"{PEFT}model.embed_tokens.weight"] = numbers(TOKENS, IN, seed=7)
    stored[f"{PEFT}score.weight"] = numbers(2, IN)
    base = open_checkpoint(folder("base", tensors))
    path = folder("post", stored, CONFIG, "adapter_model.safetensors")
    for source in (path, f"{path}/adapter_model.safetensors"):
        post = on_base(open_checkpoint(source), base)
        assert post.location == source
        assert set(post.names()) == {*tensors, "score.weight"}
        for name, (a, b) in made.items():
            np.testing.assert_array_equal(post.read(name).result(), adapted(tensors[name], a, b, 2))
            assert post.dtype_name(name) == "bfloat16 + LoRA"
        embeddings = post.read("model.embed_tokens.weight").result()
        np.testing.assert_array_equal(embeddings, stored[f"{PEFT}model.embed_tokens.weight"])
        rest = set(tensors) - set(made) - {"model.embed_tokens.weight"}
        assert post.unusable == dict.fromkeys(rest, BASE_OWN)
        pairs, skipped = pair_checkpoints(base, post)
        assert {pair.name for pair in pairs} == {*made, "model.embed_tokens.weight"}
        reads = read_views([pair.post for pair in pairs], post)
        for pair, read in zip(pairs, reads, strict=True):
            np.testing.assert_array_equal(read.result(), post.read(pair.name).result())
        reasons = {row.name: row.reason for row in skipped}
        assert reasons["model.layers.0.self_attn.k_proj.weight"] == BASE_OWN
        assert reasons["score.weight"] == "only in post"
    assert on_base(base, base) is base
    other = open_checkpoint(path)
    assert on_base(other, other) is other


PREFIXES = {
    "as it is": ("model.", "model."),
    "without a prefix": ("model.", ""),
    "vision-language": ("model.language_model.", "model."),
    "vision-language, as it was": ("language_model.model.", "model.language_model."),
    "compiled": ("_orig_mod.model.", "model."),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_modules_are_found_behind_other_prefixes(folder, case):
    of_base, of_adapter = PREFIXES[case]
    tensors = {of_base + name.removeprefix("model."): weight for name, weight in model(12).items()}
    tensors["vision_tower.layers.0.self_attn.q_proj.weight"] = numbers(IN, IN)
    named = {of_adapter + name.removeprefix("model."): weight for name, weight in model(12).items()}
    stored, made = alone(named, ["q_proj"])
    base = open_checkpoint(folder("base", tensors))
    post = on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), base)
    for name, (a, b) in made.items():
        own = of_base + name.removeprefix(of_adapter)
        np.testing.assert_array_equal(post.read(own).result(), adapted(tensors[own], a, b, 2))
    assert post.unusable["vision_tower.layers.0.self_attn.q_proj.weight"] == BASE_OWN


def test_a_module_that_may_be_either_of_two_is_not_guessed(folder):
    towers = {f"{tower}.layers.0.q_proj.weight": numbers(IN, IN) for tower in ("one", "two")}
    stored, _ = alone({"layers.0.q_proj.weight": numbers(IN, IN)}, ["q_proj"])
    post = open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match=r"may be any of one\.layers\.0\.q_proj\.weight, two\."):
        on_base(post, open_checkpoint(folder("base", towers)))
    towers["two.layers.0.q_proj.weight"] = numbers(OUT, IN)  # shapes may tell
    post = on_base(post, open_checkpoint(folder("base", towers)))
    assert post.is_adapted("one.layers.0.q_proj.weight")


def test_kernels_of_flax(folder):
    kernel = numbers(IN, OUT)
    a, b = factors(kernel.T)
    base = open_checkpoint({"params": {"layers_0": {"up_proj": {"kernel": kernel}}}})
    stored = {f"{PEFT}layers.0.up_proj.lora_A.weight": a, f"{PEFT}layers.0.up_proj.lora_B.weight": b}
    post = on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), base)
    assert post.is_transposed("layers_0.up_proj.kernel")
    np.testing.assert_array_equal(post.read("layers_0.up_proj.kernel").result(), adapted(kernel.T, a, b, 2))


def test_mlx(folder):
    tensors = model()
    name = "model.layers.1.mlp.up_proj.weight"
    a, b = factors(tensors[name])
    stored = {f"{name[:-7]}.lora_a": a.T, f"{name[:-7]}.lora_b": b.T}
    base = open_checkpoint(folder("base", tensors))
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0}}
    post = on_base(open_checkpoint(folder("post", stored, config, "adapters.safetensors")), base)
    np.testing.assert_array_equal(post.read(name).result(), adapted(tensors[name], a, b, 20))
    name = "model.layers.1.self_attn.q_proj.weight"  # square, and its rank is that of A either way
    a, b = factors(tensors[name], IN)
    stored = {f"{name[:-7]}.lora_a": a.T, f"{name[:-7]}.lora_b": b.T}
    post = on_base(open_checkpoint(folder("square", stored, config, "adapters.safetensors")), base)
    np.testing.assert_array_equal(post.read(name).result(), adapted(tensors[name], a, b, 20))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_kohya(folder, alpha):
    """Dots are gone from the names, and alpha is a tensor; without one it is the rank."""
    weight = numbers(OUT, IN)
    a, b = factors(weight)
    name = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    stem = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
    stored = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    if alpha is not None:
        stored[f"{stem}.alpha"] = np.array(alpha, np.float16)
    base = open_checkpoint(folder("base", {name: weight, "conv_in.weight": numbers(3, 3, 3, 3)}))
    post = on_base(open_checkpoint(folder("post", stored, file="lora.safetensors")), base)
    np.testing.assert_array_equal(post.read(name).result(), adapted(weight, a, b, (alpha or RANK) / RANK))


def test_biases_are_no_factors(folder):
    tensors = model()
    name = "model.layers.0.self_attn.q_proj.weight"
    stored, made = unmerged(tensors, [name])
    stored[base_layer(name).replace("base_layer.weight", "lora_B.default.bias")] = np.ones(IN, F32)
    checkpoint = open_checkpoint(folder("full", stored, CONFIG))
    np.testing.assert_array_equal(checkpoint.read(base_layer(name)).result(), adapted(tensors[name], *made[name], 2))
    stored, _ = alone(tensors, [name])
    stored |= {f"{PEFT}{name[:-7]}.lora_B.bias": np.ones(IN, F32), f"{PEFT}{name[:-7]}.bias": np.ones(IN, F32)}
    base = open_checkpoint(folder("base", tensors | {f"{name[:-7]}.bias": np.zeros(IN, F32)}))
    post = on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), base)
    np.testing.assert_array_equal(post.read(f"{name[:-7]}.bias").result(), np.ones(IN, F32))


def test_modules_that_were_trained_whole(folder):
    tensors, trained = model(), numbers(TOKENS, IN, seed=8)
    stored, _ = unmerged(tensors, ["q_proj"])
    original = stored.pop(f"{PEFT}model.embed_tokens.weight")
    stem = f"{PEFT}model.embed_tokens"
    stored |= {f"{stem}.original_module.weight": original, f"{stem}.modules_to_save.default.weight": trained}
    checkpoint = open_checkpoint(folder("full", stored, CONFIG))
    assert not any("original_module" in name or "modules_to_save" in name for name in checkpoint.names())
    np.testing.assert_array_equal(checkpoint.read(f"{stem}.weight").result(), trained)
    stored[f"{stem}.modules_to_save.other.weight"] = trained
    checkpoint = open_checkpoint(folder("two", stored, CONFIG))
    reason = f"several trained copies of {stem}.weight, of which none is chosen: default, other"
    assert checkpoint.unusable[f"{stem}.original_module.weight"] == reason


def reasons_of(checkpoint):
    return {reason for name, reason in checkpoint.unusable.items() if name.endswith("base_layer.weight")}


def test_unmerged_models_whose_factors_cannot_be_added(folder):
    tensors = model()
    stored, made = unmerged(tensors, ["q_proj"])
    checkpoint = open_checkpoint(folder("unknown", stored))
    (reason,) = reasons_of(checkpoint)
    assert reason == "unmerged LoRA factors of unknown scale: adapter_config.json is missing beside the weights"
    assert checkpoint.notes == (f"2 weights have adapters that cannot be added and are not compared: {reason}",)
    factor = f"{PEFT}model.layers.0.self_attn.q_proj.lora_A.default.weight"
    name = base_layer("model.layers.0.self_attn.q_proj.weight")
    assert checkpoint.unusable[factor] == f"part of {name}: {reason}"
    np.testing.assert_array_equal(checkpoint.read(name).result(), tensors["model.layers.0.self_attn.q_proj.weight"])

    (reason,) = reasons_of(open_checkpoint(folder("rank", stored, CONFIG | {"r": 8})))
    assert reason == "LoRA factors of rank 4, of which adapter_config.json says that it is 8"
    (reason,) = reasons_of(open_checkpoint(folder("dora", stored, CONFIG | {"use_dora": True})))
    assert "DoRA" in reason
    magnitudes = {
        factor.replace("lora_A.default.weight", "lora_magnitude_vector.default.weight"): np.ones(IN, F32),
        factor.replace("layers.0", "layers.1").replace("lora_A.default.weight", "lora_magnitude_vector.default"): (
            np.ones(IN, F32)
        ),
    }
    (reason,) = reasons_of(open_checkpoint(folder("magnitude", stored | magnitudes, CONFIG)))
    assert "DoRA" in reason
    other, _ = unmerged(tensors, ["q_proj"], "other")
    (reason,) = reasons_of(open_checkpoint(folder("two", stored | other, CONFIG)))
    assert reason == "several unmerged LoRA adapters, of which none is chosen: default, other"
    ia3 = {key: value for key, value in stored.items() if "lora" not in key}
    ia3 |= {name.replace("base_layer.weight", "ia3_l.default"): np.ones((IN, 1), F32) for name in map(base_layer, made)}
    reasons = reasons_of(open_checkpoint(folder("ia3", ia3)))
    assert len(reasons) == 2
    assert all(reason.startswith("an adapter that is not understood is beside it") for reason in reasons)
    wrong = stored | {factor: numbers(RANK, IN + 1)}
    reasons = reasons_of(open_checkpoint(folder("wrong", wrong, CONFIG)))
    assert any("another base" in reason for reason in reasons)


def test_a_model_started_with_pissa_keeps_what_is_left_of_its_base(folder):
    """Its own weights are what is left; those of the base that it was made from are not."""
    tensors = model()
    config = CONFIG | {"init_lora_weights": "pissa_niter_4"}
    stored, made = unmerged(tensors, ["q_proj"])
    checkpoint = open_checkpoint(folder("full", stored, config))
    for name, (a, b) in made.items():
        np.testing.assert_array_equal(checkpoint.read(base_layer(name)).result(), adapted(tensors[name], a, b, 2))
    stored, _ = alone(tensors, ["q_proj"])
    post = open_checkpoint(folder("post", stored, config, "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match="started with pissa_niter_4, which changes the base's weights"):
        on_base(post, open_checkpoint(folder("base", tensors)))


def test_scaled_and_quantised_bases(folder):
    f8 = ml_dtypes.float8_e4m3fn
    weight, scale = (numbers(IN, IN) * 50).astype(f8), np.full((IN, 1), 0.01, F32)
    a, b = factors(numbers(IN, IN))
    stem = "model.layers.0.mlp.up_proj"
    stored = {f"{stem}.base_layer.weight": weight, f"{stem}.base_layer.weight_scale": scale,
              f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}  # fmt: skip
    checkpoint = open_checkpoint(folder("full", stored, CONFIG))
    expected = adapted(weight.astype(F32) * scale, a, b, 2)
    np.testing.assert_array_equal(checkpoint.read(f"{stem}.base_layer.weight").result(), expected)
    assert checkpoint.dtype_name(f"{stem}.base_layer.weight") == "float8_e4m3fn, scaled + LoRA"
    base = open_checkpoint(folder("base", {f"{stem}.weight": weight, f"{stem}.weight_scale": scale}))
    adapter = {f"{PEFT}{stem}.lora_A.weight": a, f"{PEFT}{stem}.lora_B.weight": b}
    post = on_base(open_checkpoint(folder("post", adapter, CONFIG, "adapter_model.safetensors")), base)
    np.testing.assert_array_equal(post.read(f"{stem}.weight").result(), expected)
    # bitsandbytes: two numbers of four bits in a byte, whose shape says nothing.
    packed = {f"{stem}.weight": np.zeros((IN * IN // 2, 1), np.uint8), f"{stem}.weight.absmax": np.ones(16, F32)}
    base = open_checkpoint(folder("nf4", packed))
    post = on_base(open_checkpoint(folder("post", adapter, CONFIG, "adapter_model.safetensors")), base)
    _, skipped = pair_checkpoints(base, post)
    assert skipped[0].reason == "quantised: bitsandbytes 4-bit"


REFUSED = {
    "DoRA": (CONFIG | {"use_dora": True}, "is an adapter of the kind DoRA"),
    "IA3": (CONFIG | {"peft_type": "IA3"}, "is an adapter of the kind IA3"),
    "LoHa": (CONFIG | {"peft_type": "LOHA"}, "is an adapter of the kind LOHA"),
    "aLoRA": (CONFIG | {"alora_invocation_tokens": [1, 2]}, "is an adapter of the kind aLoRA"),
    "MLX's DoRA": ({"fine_tune_type": "dora"}, "is an adapter of the kind dora"),
    "repeated layers": (CONFIG | {"layer_replication": [[0, 2], [1, 2]]}, "repeats layers of the base"),
    "no configuration": (None, "unknown scale: adapter_config.json is missing"),
    "no alpha": ({"peft_type": "LORA"}, "unknown scale: adapter_config.json has no lora_alpha"),
    "another rank": (CONFIG | {"r": 16}, "of rank 4, of which adapter_config.json says that it is 16"),
    "words for numbers": (CONFIG | {"lora_alpha": "16"}, "lora_alpha must be a number. Got '16'"),
    "a list of patterns": (CONFIG | {"rank_pattern": ["q"]}, "rank_pattern must be an object of numbers"),
    "a broken pattern": (CONFIG | {"alpha_pattern": {"(": 4}}, r"pattern '\(' cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_are_refused_by_name(folder, case):
    config, message = REFUSED[case]
    tensors = model()
    stored, _ = alone(tensors, ["q_proj"])
    base = open_checkpoint(folder("base", tensors))
    with pytest.raises(CheckpointError, match=message) as error:
        on_base(open_checkpoint(folder("post", stored, config, "adapter_model.safetensors")), base)
    assert "post" in str(error.value)
    assert "\n" not in str(error.value)


def test_adapters_without_factors(folder):
    base = open_checkpoint(folder("base", model()))
    vectors = {f"{PEFT}model.layers.0.self_attn.k_proj.ia3_l": np.ones((IN, 1), F32)}
    prompts = {"prompt_embeddings": numbers(8, IN)}
    for name, tensors, kind in (("ia3", vectors, "IA3"), ("prompts", prompts, "PROMPT_TUNING")):
        post = open_checkpoint(folder(name, tensors, {"peft_type": kind}, "adapter_model.safetensors"))
        with pytest.raises(CheckpointError, match=f"is an adapter of the kind {kind}"):
            on_base(post, base)


def test_wrong_bases(folder):
    tensors = model(2)
    base = open_checkpoint(folder("base", tensors))

    def error_of(stored, on=base):
        with pytest.raises(CheckpointError) as error:
            on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), on)
        return str(error.value)

    larger = {name: numbers(*(2 * size for size in weight.shape)) for name, weight in tensors.items()}
    stored, _ = alone(larger, ["q_proj"])
    assert (
        "model.layers.0.self_attn.q_proj: LoRA factors of another base: model.layers.0.self_attn.q_proj.weight has "
        "shape (32, 32), they make (64, 64)"
    ) in error_of(stored)
    stored, _ = alone(model(40), ["q_proj"])
    message = error_of(stored)
    assert "is an adapter for modules that" in message
    assert "does not have: model.layers.10.self_attn.q_proj, " in message
    assert "and 35 more" in message
    assert "the nearest names there are model.layers.1.self_attn.q_proj" in message
    fused = {"model.layers.0.self_attn.qkv_proj.weight": numbers(3 * IN, IN)}
    stored, _ = alone(model(1), ["q_proj"])
    message = error_of(stored, open_checkpoint(folder("fused", fused)))
    assert "does not have: model.layers.0.self_attn.q_proj; the nearest names there are" in message
    assert "qkv_proj" in message
    single, _ = alone(model(1), ["q_proj"])
    message = error_of(single, open_checkpoint(folder("eighth", {"layers.7.self_attn.q_proj.weight": numbers(IN, IN)})))
    assert "does not have: model.layers.0.self_attn.q_proj" in message  # another layer is not taken for it
    resized = single | {f"{PEFT}model.embed_tokens.weight": numbers(TOKENS, IN + 1)}
    assert "is for another base: model.embed_tokens.weight has shape (64, 32) there" in error_of(resized)
    half = {name: array for name, array in single.items() if "lora_A" in name}
    assert "has no other half" in error_of(half | alone(model(2), ["k_proj"])[0])
    twice = single | {name.replace(PEFT + "model.", PEFT): array for name, array in single.items()}
    assert "are both model.layers.0.self_attn.q_proj.weight" in error_of(twice)
    adapter = open_checkpoint(folder("post", single, CONFIG, "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match="is an adapter alone; give the model it was trained on as the base"):
        on_base(base, adapter)


def test_experts_in_one_tensor_are_set_aside(folder):
    """PEFT's target_parameters: the factors of a parameter are kept beside the module that has it."""
    name = "model.layers.0.mlp.experts.down_proj"
    base = open_checkpoint(folder("base", model() | {name: numbers(2, OUT, IN)}))
    stored, made = alone(model(), ["q_proj"])
    stem = f"{PEFT}model.layers.0.mlp.experts"
    stored |= {f"{stem}.lora_A.weight": numbers(2 * RANK, OUT), f"{stem}.lora_B.weight": numbers(IN, 2 * RANK)}
    post = on_base(open_checkpoint(folder("post", stored, CONFIG, "adapter_model.safetensors")), base)
    assert post.unusable[name] == "LoRA factors of a weight of several axes: only those of matrices are added"
    assert all(post.is_adapted(weight) for weight in made)


@pytest.mark.parametrize("targets", [["q_proj"], []])
def test_experts_in_one_tensor_of_an_unmerged_model(folder, targets):
    stored, _ = unmerged(model(), targets)
    stem = f"{PEFT}model.layers.0.mlp.experts"
    for place, name in (("", "gate_up_proj"), (".base_layer", "down_proj")):
        stored[f"{stem}.base_layer.base_layer.{name}"] = numbers(2, OUT, IN)
        stored[f"{stem}{place}.lora_A.default.weight"] = numbers(2 * RANK, OUT)
        stored[f"{stem}{place}.lora_B.default.weight"] = numbers(IN, 2 * RANK)
    checkpoint = open_checkpoint(folder("full", stored, CONFIG))
    for name in ("gate_up_proj", "down_proj"):
        reason = "LoRA factors of a weight of several axes: only those of matrices are added"
        assert checkpoint.unusable[f"{stem}.base_layer.base_layer.{name}"] == reason


def test_names_like_those_of_adapters_change_nothing(folder):
    tensors = {
        "model.base_layer.0.weight": numbers(8, 4),
        "model.level1.weight": numbers(8, 4),
        "lora_scale": numbers(3),
    }
    path = folder("dla", tensors)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.unusable
    assert set(checkpoint.names()) == set(tensors)
    assert on_base(checkpoint, checkpoint) is checkpoint


def test_very_many_modules_are_found_quickly():
    """As many as the largest models have experts: each name is looked up, not compared with all others."""
    from polarax.loaders.adapters.modules import Modules

    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in range(60) for expert in range(256)
    ]
    modules = Modules((name, name) for name in names)
    for name in names:
        spelt = name.replace("model.", "base_model.model.model.language_model.", 1).removesuffix(".weight")
        assert list(modules.find(spelt)) == [name]
