"""What a model does with a text: loss, attention, agreement with another model; and what it writes.

model = load_decoder("path/to/model")
measure(model, tokens)                  # sums over windows of a text
generate(model, prompts)                # with a cache of keys and values
log_likelihoods(model, pairs)           # of given continuations
evaluate("path/to/model", text="path/to/text.txt")    # all of it, from files
"""

from polarax.evaluation.decoder import FAMILIES, Decoder, DecoderConfig, Observer, load_decoder
from polarax.evaluation.evaluating import Evaluation, evaluate
from polarax.evaluation.generation import generate
from polarax.evaluation.likelihood import Likelihood, log_likelihoods
from polarax.evaluation.lm_eval import lm_eval_model
from polarax.evaluation.measuring import Measured, Settings, measure

__all__ = [
    "FAMILIES",
    "Decoder",
    "DecoderConfig",
    "Evaluation",
    "Likelihood",
    "Measured",
    "Observer",
    "Settings",
    "evaluate",
    "generate",
    "lm_eval_model",
    "load_decoder",
    "log_likelihoods",
    "measure",
]
