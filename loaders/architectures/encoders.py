"""Names of encoders, and of T5, in PyTorch: BERT, RoBERTa, ELECTRA, MPNet, DistilBERT, ViT.

Each table follows the module names of the code in Hugging Face transformers (models/<name>/modeling_<name>.py).
"""

from polarax.loaders.architectures.rules import Architecture, Rule

BERT = Architecture(
    "BERT",
    prefixes=(
        "",
        "bert.",
        "roberta.",
        "electra.",
        "mpnet.",
        "vit.",
        "deit.",
        "model.",
        "auto_model.",
        "0.auto_model.",
    ),
    layers=("encoder.layer.",),
    in_layer={
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.self.qkv_proj": Rule("qkv", "p i", "blocks"),  # vLLM
        "attention.attention.query": "q",  # ViT
        "attention.attention.key": "k",
        "attention.attention.value": "v",
        "attention.output.dense": "o",
        "attention.attn.q": "q",  # MPNet
        "attention.attn.k": "k",
        "attention.attn.v": "v",
        "attention.attn.o": "o",
        "crossattention.self.query": "cross_q",  # as a decoder
        "crossattention.self.key": "cross_k",
        "crossattention.self.value": "cross_v",
        "crossattention.output.dense": "cross_o",
        "intermediate.dense": "up",
        "output.dense": "down",
    },
    outside={
        "embeddings.word_embeddings": "embed",
        "embeddings.position_embeddings": Rule("position", "o i|1 o i"),  # ViT's has a leading axis of length one
        "embeddings.token_type_embeddings": "token_type",
        "embeddings.patch_embeddings.projection": Rule("patch", "o i i i"),
        "encoder.relative_attention_bias": "position",  # MPNet
        "pooler.dense": "pooler",
        "classifier": "head",
        "classifier.dense": "pooler",  # RoBERTa, MPNet
        "classifier.out_proj": "head",
        "cls_classifier": "head",  # DeiT
        "distillation_classifier": "head",
        "qa_outputs": "head",
        "cls.predictions.decoder": "head",
        "cls.seq_relationship": "head",
        "lm_head.decoder": "head",
        "generator_lm_head": "head",  # ELECTRA
    },
    tied=True,
)

# As transformers 5 has it in memory; it saves the names above.
VIT = Architecture(
    "ViT",
    prefixes=("", "vit.", "deit."),
    layers=("layers.",),
    in_layer={
        "attention.q_proj": "q",
        "attention.k_proj": "k",
        "attention.v_proj": "v",
        "attention.o_proj": "o",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    },
    outside={},
)

DISTILBERT = Architecture(
    "DistilBERT",
    prefixes=("", "distilbert.", "model.", "auto_model.", "0.auto_model."),
    layers=("transformer.layer.",),
    in_layer={
        "attention.q_lin": "q",
        "attention.k_lin": "k",
        "attention.v_lin": "v",
        "attention.out_lin": "o",
        "ffn.lin1": "up",
        "ffn.lin2": "down",
    },
    outside={
        "embeddings.word_embeddings": "embed",
        "embeddings.position_embeddings": "position",
        "pre_classifier": "pooler",
        "classifier": "head",
        "qa_outputs": "head",
        "vocab_projector": "head",
    },
    tied=True,
    model_types=("distilbert",),
)

# Feed-forward layers come second in a block of the encoder and third in one of the decoder.
_T5_FEED_FORWARD = {
    f"layer.{place}.DenseReluDense.{name}": role
    for place in (1, 2)
    for name, role in (("wi", "up"), ("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
}

T5 = Architecture(
    "T5",
    prefixes=("", "transformer.", "model.", "auto_model.", "0.auto_model."),
    layers=("encoder.block.", "decoder.block."),
    in_layer={
        **{f"layer.0.SelfAttention.{role}": role for role in "qkvo"},
        **{f"layer.1.EncDecAttention.{role}": f"cross_{role}" for role in "qkvo"},
        **_T5_FEED_FORWARD,
        "layer.0.SelfAttention.relative_attention_bias": "position",
    },
    outside={
        "shared": "embed",
        "encoder.embed_tokens": "embed",
        "decoder.embed_tokens": "embed",
        "lm_head": "head",
    },
    copies={"encoder.embed_tokens": "shared", "decoder.embed_tokens": "shared"},
    tied=True,
)

TABLES = (BERT, VIT, DISTILBERT, T5)
