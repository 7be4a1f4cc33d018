"""An evaluation in sentences, each number beside what it is measured against."""

import math

import numpy as np

from polarax.evaluation.measuring import Measured


def read_out(measured: Measured | None) -> list[str]:
    """What the numbers say; nothing of nothing."""
    if measured is None:
        return []
    error = "" if math.isnan(measured.loss_error) else f" (± {measured.loss_error:.3f} over windows)"
    lines = [
        f"Loss {measured.loss:.4f} nats a token{error}: perplexity {measured.perplexity:.4g} over {measured.tokens:,} "
        f"tokens; {measured.accuracy:.1%} of them were the most probable one.",
        f"Attention has an entropy of {measured.attention_entropy.mean():.2f} nats on average, from "
        f"{measured.attention_entropy.min():.2f} to {measured.attention_entropy.max():.2f} by head: "
        f"{measured.attention_share.mean():.0%} of looking at all visible tokens alike.",
    ]
    if measured.divergence is not None and measured.reference_loss is not None:
        assert measured.divergence_error is not None and measured.reference_entropy is not None
        spread = "" if math.isnan(measured.divergence_error) else f" (± {measured.divergence_error:.2g})"
        lines.append(
            f"Against the reference, whose loss is {measured.reference_loss:.4f}: its distribution of the next token "
            f"is {measured.divergence:.4g} nats{spread} from the model's (KL divergence, reference || model), and both "
            f"find the same token most probable at {measured.agreement:.1%} of places."
        )
        if measured.reference_entropy.shape == measured.attention_entropy.shape:
            change = measured.attention_entropy - measured.reference_entropy
            layer, head = np.unravel_index(np.abs(change).argmax(), change.shape)
            lines.append(
                f"The entropy of attention is {change.mean():+.3f} nats from the reference's on average, most in layer "
                f"{layer}, head {head}: {change[layer, head]:+.3f}."
            )
    if measured.cka is not None and measured.cka_layers is not None:
        lines += _of_cka(measured.cka, *measured.cka_layers)
    return lines


def _of_cka(cka: np.ndarray, layers: list[int], of_reference: list[int]) -> list[str]:
    if layers != of_reference:
        return []
    same = np.diag(cka)
    if not np.isfinite(same).any():
        return []
    low = int(np.nanargmin(same))
    place = "the embedding" if layers[low] == 0 else f"layer {layers[low]}"
    return [
        f"States of the same layer have a linear CKA of {np.nanmean(same):.4f} on average, least after {place}: "
        f"{same[low]:.4f}."
    ]
