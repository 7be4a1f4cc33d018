"""Published models in the forms that different tools save them in: names and arrays, made from one original.

The arrays of all forms of a model hold the same numbers, fused, stacked and transposed as each tool has them, so that
any two forms can be held against each other matrix by matrix. They are as a `Checkpoint` shows them. What tools change
in the numbers themselves (the order of rotary rows, scales folded into norms) is not part of this.

Unsloth saves models under the names of transformers.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.formats.parameter_tree import ParameterTree
from tests.loaders.model_forms import compressed, jax_tools, torch_tools
from tests.loaders.model_forms.models import MODELS

__all__ = ["MODELS", "Form", "FormCheckpoint", "forms"]


class Form(NamedTuple):
    """A model as one tool saves it."""

    tensors: Mapping[str, np.ndarray]
    config: Mapping[str, Any] | None  # what config.json says, or the file's own settings; None if there is none

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return {name: array.shape for name, array in self.tensors.items()}


class FormCheckpoint(ParameterTree):
    """A form as a checkpoint, with its configuration."""

    def __init__(self, form: Form):
        super().__init__(dict(form.tensors))
        self._form_config = form.config

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the form's tool writes beside the tensors."""
        return self._form_config


@functools.cache
def forms(name: str) -> dict[str, Form]:
    """Every form of one of `MODELS`, by the tool's name."""
    model = MODELS[name]
    rng = np.random.default_rng(0)
    original = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in model.shapes.items()}
    saved = {"transformers 4": Form(original, model.config)}
    for tool, convert in (torch_tools.TOOLS | jax_tools.TOOLS | compressed.TOOLS).items():
        converted = convert(model, original)
        if converted is not None:
            saved[tool] = Form(*converted)
    return saved
