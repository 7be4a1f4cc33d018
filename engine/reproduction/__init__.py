"""The experiments of He and Cao (arXiv:2509.17866) on any base and post, each beside what a random change does."""

from polarax.reproduction.experiments import EXPERIMENTS, Experiment
from polarax.reproduction.reproducing import Reproduction, reproduce

__all__ = ["EXPERIMENTS", "Experiment", "Reproduction", "reproduce"]
