"""Every matrix that a checkpoint holds, and why each other tensor holds none."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from polarax.loaders.architectures import (
    NOBODY,
    Architecture,
    Identity,
    Recognised,
    Rule,
    plain,
    recognise,
    without_variable,
)
from polarax.loaders.checkpoint import INTERLEAVED, Checkpoint
from polarax.loaders.matrices.axes import Meaning, matrices
from polarax.loaders.matrices.flax_kernels import is_kernel_name, kernel_axes, layer_stacks, layers_in
from polarax.loaders.matrices.heads import heads_of, hidden_size, language_model, ties_embeddings
from polarax.loaders.matrices.layer_numbers import number_layers
from polarax.loaders.matrices.no_matrix import one_matrix, why_no_matrix
from polarax.loaders.matrices.optimizer_state import OPTIMIZER, optimizer_names
from polarax.loaders.matrices.role_map import RoleMap
from polarax.loaders.matrices.row_order import deinterleaved
from polarax.loaders.matrices.splits import SPLITS, Part, Surroundings
from polarax.loaders.matrices.view import View
from polarax.loaders.roles import OTHER, ROLE, Side

_VECTORS = ("bias", "scale")  # a number per unit, whatever axes the units have
_VECTOR = re.compile(rf"(?:^|[._/])({'|'.join(_VECTORS)})$")
_RELATIVE_BIAS = "relative_attention_bias"  # T5's is a table (buckets, heads)
_VLLM_WEIGHT = "_weight"  # vLLM's experts: "w13_weight" beside "w13_bias"
_OTHER = Rule(OTHER)
_PLAIN = Meaning.parse("o i")


class Inventory(NamedTuple):
    """What is in a checkpoint, tensor by tensor: each is in one of the two."""

    views: Mapping[str, tuple[View, ...]]
    reasons: Mapping[str, str]  # why a tensor holds no matrix
    tied: Mapping[str, str]  # matrices' tensors that repeat another one, with that one's name


def take_inventory(
    checkpoint: Checkpoint,
    role_map: RoleMap | None = None,
    config: Mapping[str, Any] | None = None,
) -> Inventory:
    """Lists the matrices of a checkpoint from names, shapes and configuration; reads no tensor.

    Args:
        checkpoint: Whose tensors to list.
        role_map: The user's own table, asked before all others.
        config: Stands in where the checkpoint has no configuration of its own.
    """
    return _Lister(checkpoint, role_map, config).take()


class _Lister:
    """One pass over a checkpoint's names, and what every tensor's rule may ask about the others."""

    def __init__(self, checkpoint: Checkpoint, role_map: RoleMap | None, config: Mapping[str, Any] | None):
        self._checkpoint = checkpoint
        self._role_map = role_map
        self._given_config = config
        self._unusable = checkpoint.unusable
        self._config: Mapping | None = None
        optimizer = optimizer_names(checkpoint)
        self._names = tuple(name for name in checkpoint.names() if name not in optimizer)
        self._stacks = layer_stacks(checkpoint)
        recognised = {name: recognise(name) for name in self._names}
        if any(_asks_config(found) for found in recognised.values()):
            model_type = self.config.get("model_type")
            recognised = {name: recognise(name, model_type) for name in self._names}
        self._recognised = number_layers(recognised, checkpoint.shape)
        self._inputs: dict[tuple[str, int | None, str], int] = {}  # by prefix, layer and role
        self._inputs_last: dict[Architecture, bool | None] = {}
        self._hidden: int | None = None
        self._embeddings: dict[str, str] = {}  # their names by their plain names
        for name, found in self._recognised.items():
            self._note(name, found)

    @property
    def config(self) -> Mapping:
        """Configuration of the language model, read when it is first asked for."""
        if self._config is None:
            self._config = language_model(self._checkpoint.config or self._given_config)
        return self._config

    def _note(self, name: str, found: Recognised) -> None:
        """Remembers what others may ask: sizes of the layer's output projections and of the residual stream."""
        shape = self._checkpoint.shape(name)
        role = found.identity.role
        if role == "embed" and not found.tower:
            self._embeddings[plain(name)] = name
        if found.rule is not None and len(shape) == 2:
            if ROLE[role].rows is Side.RESIDUAL and found.identity.expert is None:
                self._inputs[found.prefix, found.identity.layer, role] = shape[1]
            elif role == "embed" and not found.tower:
                self._hidden = shape[1]

    def take(self) -> Inventory:
        views: dict[str, tuple[View, ...]] = {}
        reasons: dict[str, str] = {}
        for name in self._checkpoint.names():
            listed = self._list_tensor(name)
            if isinstance(listed, str):
                reasons[name] = listed
            else:
                views[name] = self._in_one_order(name, listed)
        return Inventory(views, reasons, self._tied(views))

    def _list_tensor(self, name: str) -> tuple[View, ...] | str:
        if name not in self._recognised:
            return OPTIMIZER
        if name in self._unusable:
            return self._unusable[name]

        no_array = self._checkpoint.why_no_array(name)
        if no_array is not None:
            return no_array
        shape = self._checkpoint.shape(name)
        if self._role_map is not None:
            of_user = self._role_map.look_up(name)
            if of_user is not None:
                listed = self._of_rule(name, shape, Recognised(*of_user, None))
                axes = of_user[1].axes
                return f'{len(shape)}-D: --role_map gives the axes "{axes}"' if listed is None else listed
        array = without_variable(name)
        vector = _VECTOR.search(array) if array.endswith(_VECTORS) else None
        if vector is not None and len(shape) >= 2 and _RELATIVE_BIAS not in name:
            return f"{len(shape)}-D {vector[1]}: not a matrix"
        listed = self._of_rule(name, shape, self._recognised[name])
        return why_no_matrix(name, shape) if listed is None else listed

    def _of_rule(self, name: str, shape: tuple[int, ...], found: Recognised) -> tuple[View, ...] | str | None:
        """The matrices of a tensor, or why it has none; None if its axes are not known."""
        identity = NOBODY if found.tower else found.identity
        if len(shape) == 2 and not self._stacks and not found.stacked and (found.rule or _OTHER)[1:] == _OTHER[1:]:
            return (View(name, (shape[0], shape[1]), "", *identity),) if 0 not in shape else "empty"
        meaning = self._meaning(name, shape, found)
        if meaning is None:
            return None
        if not meaning.is_matrix():
            return f"{len(shape) - 1}-D in each layer: not a matrix"
        if 0 in shape:
            return "empty"
        layer, role, expert = identity
        if found.rule is not None and len(meaning.axes) == 2 and not _may_be_matrix(found.rule):
            role = OTHER  # something else of the same name
        parts = self._parts(name, shape, meaning, found)
        views = matrices(name, shape, meaning, role, parts, layer, expert, found.first, found.step)
        return tuple(view._replace(layer=None, role=OTHER) if found.tower else view for view in views)

    def _meaning(self, name: str, shape: tuple[int, ...], found: Recognised) -> Meaning | None:
        rule, rank = found.rule, len(shape)
        layers = layers_in(self._stacks, name)
        stacked = found.stacked or layers is not None
        place = found.architecture.layer_axis if found.stacked and found.architecture is not None else 0
        kernel = is_kernel_name(name)
        fitting = []
        for text in (rule or _OTHER).axes.split("|"):
            meaning = Meaning.parse(text)
            fitting += [meaning] if not stacked and meaning.fits(shape) else []
            if stacked and place <= len(meaning.axes):
                meaning = meaning.stacked(place)
                fitting += [meaning] if meaning.fits(shape) and not (kernel and rank == 3) else []
        if fitting:
            return fitting[0] if len(fitting) == 1 else self._choose(fitting, name, shape, found)
        if kernel and rank > 2:
            return kernel_axes(self._checkpoint, name, found.identity.role, stacked, place)
        if stacked and rank == 2:
            return Meaning.parse("L o")
        if rule is not None and rank == 2 and not stacked:
            return _PLAIN
        return one_matrix(name, shape) if not stacked else None

    def _choose(self, fitting: list[Meaning], name: str, shape: tuple[int, ...], found: Recognised) -> Meaning:
        """Of several meanings the one whose residual side has the residual stream's size.

        If that ties, as for square matrices, the one that puts the inputs where other tensors of the table have them;
        else the first.
        """
        if self._has_expert_biases(name):
            fitting = [meaning for meaning in fitting if meaning.axes[-1] != "i"] or fitting
        agreeing = self._agreeing(fitting, shape, found.identity.role)
        if len(agreeing) == 1:
            return agreeing[0]
        if found.architecture is not None:
            last = self._has_inputs_last(found.architecture)
            fitting = [meaning for meaning in fitting if last is (meaning.axes[-1] == "i")] or fitting
        return fitting[0]

    def _agreeing(self, fitting: Iterable[Meaning], shape: tuple[int, ...], role: str) -> list[Meaning]:
        """Those meanings whose residual side has the residual stream's size."""
        hidden = self._hidden or hidden_size(self.config)
        return [
            meaning
            for meaning in fitting
            if (ROLE[role].columns is Side.RESIDUAL and meaning.inputs(shape) == hidden)
            or (ROLE[role].rows is Side.RESIDUAL and meaning.outputs(shape) == hidden)
        ]

    def _has_inputs_last(self, architecture: Architecture) -> bool | None:
        """Whether a table's tensors, of which that is not fixed, have their inputs last; None if no shape tells."""
        if architecture not in self._inputs_last:
            self._inputs_last[architecture] = self._find_inputs_last(architecture)
        return self._inputs_last[architecture]

    def _find_inputs_last(self, architecture: Architecture) -> bool | None:
        for name, found in self._recognised.items():
            if found.architecture is not architecture or found.rule is None or found.stacked:
                continue
            shape = self._checkpoint.shape(name)
            meanings = [Meaning.parse(text) for text in found.rule.axes.split("|")]
            fitting = [meaning for meaning in meanings if meaning.fits(shape)]
            agreeing = self._agreeing(fitting, shape, found.identity.role)
            if len(fitting) > 1 and len(agreeing) == 1:
                return agreeing[0].axes[-1] == "i"
        return None

    def _parts(self, name: str, shape: tuple[int, ...], meaning: Meaning, found: Recognised) -> tuple[Part, ...] | None:
        if found.rule is None or not found.rule.split or "p" not in meaning.axes:
            return None
        size = shape[meaning.axes.index("p")]
        layer = found.prefix, found.identity.layer
        config = {} if found.tower else self.config  # which is the language model's
        around = Surroundings(
            meaning.inputs(shape),
            config,
            heads_of(config),
            self._inputs.get((*layer, "o")),
            self._inputs.get((*layer, "down")),
            self._has_expert_biases(name),
        )
        return SPLITS[found.rule.split](size, around)

    def _in_one_order(self, name: str, views: tuple[View, ...]) -> tuple[View, ...]:
        """The matrices with rows of queries and keys in Hugging Face's order, or marked as being in another one."""
        order = self._checkpoint.row_order(name)
        found = self._recognised.get(name)
        of_meta = found is not None and found.rule is not None and found.rule.interleaved and name.endswith(".weight")
        if not order and not of_meta:
            return views
        if self._role_map is not None and self._role_map.look_up(name) is not None:
            return views
        if order or self._has_norms(name):
            return tuple(view._replace(row_order=INTERLEAVED) for view in views)
        return tuple(deinterleaved(view, heads_of(self.config)) for view in views)

    def _has_norms(self, name: str) -> bool:
        """Whether queries and keys are normalised. Code that does has Meta's names and either order."""
        module = name.removesuffix(".weight").rpartition(".")[0]
        return any(f"{module}.{norm}.weight" in self._checkpoint for norm in ("q_norm", "k_norm"))

    def _has_expert_biases(self, name: str) -> bool:
        """As only gpt-oss has, whose experts are (in, out) and alternate gate and up."""
        return name + "_bias" in self._checkpoint or (
            name.endswith(_VLLM_WEIGHT) and name.removesuffix(_VLLM_WEIGHT) + "_bias" in self._checkpoint
        )

    def _tied(self, views: Mapping[str, tuple[View, ...]]) -> dict[str, str]:
        """Heads and embeddings that are the same as another embedding, with its name."""
        embeddings = [name for name in views if self._role(name) == "embed"]
        embeddings.sort(key=lambda name: self._recognised[name].identity.layer is not None)
        heads = [name for name in views if self._role(name) == "head"]
        tied: dict[str, str] = {}
        for name in embeddings:
            found = self._recognised[name]
            if found.architecture is None:
                continue
            original = found.architecture.copies.get(plain(name)[len(found.prefix) :])
            if original is not None and found.prefix + original in self._embeddings:
                tied[name] = self._embeddings[found.prefix + original]
        for name in heads:
            same = [other for other in embeddings if self._checkpoint.shares_values(name, other)]
            if not same and embeddings and self._ties_by_config(name, embeddings[0]):
                same = embeddings[:1]
            if same:
                tied[name] = same[0]
        return tied

    def _ties_by_config(self, head: str, embedding: str) -> bool:
        if self._checkpoint.shape(head) != self._checkpoint.shape(embedding):
            return False
        # The embedding's: a name like "lm_head" is in many a table.
        return ties_embeddings(self.config, self._recognised[embedding].architecture)

    def _role(self, name: str) -> str:
        found = self._recognised.get(name)
        return found.identity.role if found is not None and not found.tower else OTHER


def _may_be_matrix(rule: Rule) -> bool:
    """Whether a rule is for tensors that are one matrix as they stand."""
    return any(len(text.split()) == 2 for text in rule.axes.split("|"))


def _asks_config(found: Recognised) -> bool:
    """Whether config.json may say more of a tensor than its name does."""
    return found.rule is not None and bool(found.rule.split or "|" in found.rule.axes or found.rule.axes == "i o")


def identities(views: Iterable[View]) -> dict[Identity, list[View]]:
    """The matrices whose role is known, by what they are."""
    by_identity: dict[Identity, list[View]] = {}
    for view in views:
        if view.role != OTHER:
            by_identity.setdefault(Identity(view.layer, view.role, view.expert), []).append(view)
    return by_identity
