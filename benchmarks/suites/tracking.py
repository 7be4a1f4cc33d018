"""A training loop with and without `polarax.Tracker`: SmolLM2-135M's sizes, 4 x 128 tokens a step, plain JAX and optax.

Contestants are single steps, which take turns: of the loop alone, with a tracker at a step that does not measure, and
at one that does. What tracking adds to a loop that measures every N steps follows from them: the difference of the
second and N-th part of the difference of the third. Weights are random; the work does not depend on them, but for the
number of cycles of subspace iteration, for which they move by a step of the optimizer at every call.
"""

import functools
import importlib.util
import pathlib
import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import polarax
from benchmarks.cases import Case, Record, raced
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from benchmarks.timing import Contestant, ratio

_EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "docs/examples/decoder.py"
_BATCH, _LENGTH = 4, 128
_SHORT_LAYERS = 4  # of 30
_EVERY = 100
_PATIENCE = 2.0

# What is tracked in each case, beside the default.
_CASES = {"defaults": {}, "with the budget": {"metrics": "change,scaling,shape,overlap,leading,budget"}}


def cases(options: Options) -> list[Case]:
    """One case for each choice of metrics."""
    chosen = dict(list(_CASES.items())[:1]) if options.short else _CASES
    return [
        Case(f"tracking, {name}", functools.partial(_run, options, name, arguments), _PATIENCE)
        for name, arguments in chosen.items()
    ]


def _run(options, name, arguments) -> list[Record]:
    decoder = _example()
    full = decoder.Config()
    config = decoder.Config(
        layers=_SHORT_LAYERS if options.short or options.shrink > 1 else full.layers,
        hidden=shrunk(full.hidden, options.shrink) // full.heads * full.heads,
        units=shrunk(full.units, options.shrink),
        vocabulary=shrunk(full.vocabulary, options.shrink),
    )
    tracker = polarax.Tracker(every=_EVERY, **arguments)
    loops = [
        ("loop alone", _Loop(decoder, config, None, 1)),
        ("tracked, a step that does not measure", _Loop(decoder, config, tracker, 1)),
        ("tracked, a step that measures", _Loop(decoder, config, tracker, 0)),
    ]
    records = raced(
        [Contestant(label, loop, loop.prepare, {"dtype": "float32"}) for label, loop in loops],
        options,
        case=f"step of {config.layers} layers of SmolLM2-135M, {name}",
    )
    tracked = loops[1][1].state["tracker"]
    kept = sum(x.nbytes for x in jax.tree.leaves((tracked.base, tracked.reference, tracked.last)))
    samples = [record.get("samples") for record in records]
    about: Record = {"state_bytes": kept, "tracked_bytes": sum(x.nbytes for x in tracked.base)}
    if all(samples):
        plain, idle, measured = samples
        about["share"] = statistics.median(
            ((_EVERY - 1) * idle_step + measured_step) / (_EVERY * plain_step) - 1
            for plain_step, idle_step, measured_step in zip(plain, idle, measured, strict=True)
        )
        about["steps_per_measurement"] = ratio(measured, plain).median - 1
    records[-1] |= about
    return records


class _Loop:
    """A training loop of which each call takes one step, always of the same number."""

    def __init__(self, decoder: Any, config: Any, tracker: polarax.Tracker | None, number: int):
        params = decoder.random_params(config, jax.random.key(0))
        optimizer = optax.adamw(1e-4)
        self.state = {"params": params, "optimizer": optimizer.init(params)}
        if tracker is not None:
            self.state["tracker"] = tracker.init(params)
        self._number = jnp.int32(number)
        rng = np.random.default_rng(0)
        self._tokens = jnp.asarray(rng.integers(config.vocabulary, size=(_BATCH, _LENGTH)))

        def step(state, tokens, number):
            found = dict(state)
            if tracker is not None:
                found["tracker"], _ = tracker.update(state["tracker"], state["params"], number)

            def loss_of(params):
                return decoder.cross_entropy(decoder.logits(params, tokens, config), tokens)

            loss, grads = jax.value_and_grad(loss_of)(state["params"])
            updates, found["optimizer"] = optimizer.update(grads, state["optimizer"], state["params"])
            found["params"] = optax.apply_updates(state["params"], updates)
            return found, loss

        self._step = jax.jit(step, donate_argnums=0)
        self._program: Any = None

    def prepare(self) -> None:
        """Compiles."""
        self._program = self._step.lower(self.state, self._tokens, self._number).compile()

    def __call__(self) -> None:
        self.state, loss = self._program(self.state, self._tokens, self._number)
        jax.block_until_ready((self.state, loss))

    def memory(self) -> dict[str, int]:
        """Bytes of arguments, results and temporary arrays, as the compiler planned them."""
        if self._program is None:
            return {}
        analysis = self._program.memory_analysis()
        return {
            "argument_bytes": int(analysis.argument_size_in_bytes),
            "output_bytes": int(analysis.output_size_in_bytes),
            "temporary_bytes": int(analysis.temp_size_in_bytes),
        }


def _example() -> Any:
    """The decoder of the examples in docs/."""
    spec = importlib.util.spec_from_file_location("polarax_example_decoder", _EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
