"""The tokenizer inside a GGUF file, of those whose parts `tokenizers` has: byte pairs after a split of the text.

How a text is split first is not in the file, which only names it (`tokenizer.ggml.pre`); the expressions are those of
llama.cpp (llm_tokenizer_bpe in src/llama-vocab.cpp), which are the original tokenizers'.
"""

import importlib
import pathlib
from typing import Any

from polarax.errors import UsageError
from polarax.loaders.formats.gguf_byte_order import open_reader

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
_CONTROL, _USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`


def gguf_tokenizer(path: pathlib.Path) -> Any:
    """The `tokenizers.Tokenizer` that a file describes.

    Raises:
        UsageError: It describes another kind, or none.
    """
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

    reader = open_reader(importlib.import_module("gguf"), str(path))

    def setting(name: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{name}")
        return None if field is None else field.contents()

    kind, split = setting("model"), setting("pre") or "gpt-2"
    if kind != "gpt2" or split not in _SPLITS:
        raise UsageError(
            f"{path}: its tokenizer ({kind}, {split}) is none that can be built from the file: give its "
            "tokenizer.json, or token ids."
        )
    tokens, kinds = setting("tokens"), setting("token_type")
    merges = [tuple(pair.split(" ", 1)) for pair in setting("merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in _SPLITS[split]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in zip(kinds, tokens, strict=True):
        if number in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=number == _CONTROL, normalized=False)
            (tokenizer.add_special_tokens if number == _CONTROL else tokenizer.add_tokens)([added])
    first = setting("bos_token_id")
    if setting("add_bos_token") and first is not None:
        token = tokens[first]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, first)]
        )
    return tokenizer
