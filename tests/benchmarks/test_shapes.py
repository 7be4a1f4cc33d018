"""Shapes derived from configs give the parameter counts the models are published with."""

import pytest

from benchmarks.shapes import CONFIGS, distinct_shapes, linear_layers, shrunk

# Parameters of the published weights (DeepSeek-V3 without its multi-token prediction module).
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_419_200,
}


def _parameters(config):
    """Linear layers, embeddings, norms and biases."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    linears = linear_layers(config)
    total = sum(linear.rows * linear.cols * linear.count for linear in linears)
    total += config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    norms = 2 * hidden + config.q_lora_rank + config.kv_lora_rank
    total += layers * norms + hidden
    if config.attention_bias:
        total += sum(linear.rows * linear.count for linear in linears if linear.role in "qkv")
    if config.n_shared_experts:  # a bias for each routed expert balances their load
        total += config.num_experts * (layers - config.first_k_dense_replace)
    return total


@pytest.mark.parametrize("model", CONFIGS)
def test_parameter_count_is_the_published_one(model):
    assert _parameters(CONFIGS[model]) == PARAMETERS[model]


def test_layer_of_qwen_1_5b():
    shapes = {linear.role: (linear.rows, linear.cols) for linear in _linears("qwen2.5-1.5b")}
    assert shapes == {
        "q": (1536, 1536),
        "k": (256, 1536),
        "v": (256, 1536),
        "o": (1536, 1536),
        "gate": (8960, 1536),
        "up": (8960, 1536),
        "down": (1536, 8960),
    }


def test_experts_are_counted():
    mixtral = {linear.role: linear for linear in _linears("mixtral-8x7b")}
    assert mixtral["expert_gate"].count == 8 * 32
    deepseek = {linear.role: linear for linear in _linears("deepseek-v3")}
    assert (deepseek["gate"].layers, deepseek["expert_gate"].layers) == (3, 58)
    assert deepseek["expert_down"].count == 256 * 58


def test_distinct_shapes_cover_a_layer():
    config = CONFIGS["llama-3.1-8b"]
    assert distinct_shapes(config) == {
        (4096, 4096): 2,
        (1024, 4096): 2,
        (14336, 4096): 2,
        (4096, 14336): 1,
    }


def test_shrunk_keeps_a_matrix_a_matrix():
    assert (shrunk(4096, 1), shrunk(4096, 64), shrunk(256, 64)) == (4096, 64, 8)


def _linears(model):
    return linear_layers(CONFIGS[model])
