"""Decoders of the Llama family: what config.json says of one, its modules, its weights from any checkpoint."""

from polarax.evaluation.decoder.config import DecoderConfig
from polarax.evaluation.decoder.families import FAMILIES, decoder_config
from polarax.evaluation.decoder.loading import load_decoder
from polarax.evaluation.decoder.modules import Cache, Decoder, Observations, Observer

__all__ = [
    "FAMILIES",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Observations",
    "Observer",
    "decoder_config",
    "load_decoder",
]
