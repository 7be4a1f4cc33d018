"""Records what transformers says of the tiny models: `python -m tests.engine.evaluation.record_transformers`.

Needs torch and transformers, which the tests do not: they read what is recorded. The scores are of the last places of
a text, in float32 and with its plain attention.
"""

import json
import pathlib
import tempfile

import numpy as np

from tests.engine.evaluation.models import CONFIGS, save, tensors_of, text

FILE = pathlib.Path(__file__).with_name("transformers_scores.json")
LENGTH, PLACES = 40, 4
TOKENS = slice(None, None, 4)  # of the vocabulary, whose scores are kept


def main() -> None:
    """Writes the file."""
    import torch
    import transformers

    recorded = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = save(pathlib.Path(folder), config, tensors_of(config))
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            )
        tokens = torch.tensor(text(LENGTH).astype(np.int64))[None]
        with torch.no_grad():
            scores = model(tokens).logits[0]
        loss = torch.nn.functional.cross_entropy(scores[:-1].double(), tokens[0, 1:])
        last = scores[-PLACES:, TOKENS].numpy()
        recorded[name] = {"loss": loss.item(), "scores": [[float(f"{value:.7g}") for value in row] for row in last]}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    FILE.write_text(json.dumps({"versions": versions, "models": recorded}) + "\n")


if __name__ == "__main__":
    main()
