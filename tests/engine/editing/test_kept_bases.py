"""Edits of bases that are kept decomposed: nothing is decomposed again, and the weights are the same."""

import jax
import numpy as np
import pytest

import polarax
from polarax.editing import KINDS, execution
from polarax.editing.program import decompose_base
from polarax.kernels.edits.tall_pair import tall_pair
from polarax.loaders import open_checkpoint
from polarax.measuring.parts import How
from tests.engine.command import NO_CACHE
from tests.engine.conftest import write_checkpoint
from tests.kernels.matrices import drifted, matrix

NAME = "model.layers.{}.self_attn.{}_proj.weight"
TALL, WIDE, SQUARE, LOW_RANK, DOUBLE = (NAME.format(0, role) for role in "qkvo") + (NAME.format(1, "q"),)
