"""What --include, --exclude, --roles and --layers keep."""

import re

import numpy as np
import pytest

from polarax import UsageError, open_checkpoint
from polarax.loaders import Pair, View, pair_checkpoints
from polarax.planning.selection import Selection

FLOAT = np.dtype(np.float32)


def pair(name, layer=None, role="other"):
    view = View(name, (2, 2), layer=layer, role=role)
    return Pair(name, layer, role, None, (2, 2), FLOAT, FLOAT, name, view, view, "float32", "float32", 16, 16)


PAIRS = [
    pair("embed", role="embed"),
    *(pair(f"layer.{layer}.{role}", layer, role) for layer in (0, 1, 2, 10) for role in "qkvo"),
    pair("layer.1.mixer", 1, "other"),
]


def kept(**given):
    chosen, skipped = Selection.parse(**given).split(PAIRS)
    assert [row.name for row in skipped] == [p.name for p in PAIRS if p not in chosen]
    return {one.name for one in chosen}


def all_names(condition):
    return {one.name for one in PAIRS if condition(one)}


@pytest.mark.parametrize(
    ("given", "condition"),
    [
        ({}, lambda p: True),
        ({"include": ""}, lambda p: True),
        ({"include": "q"}, lambda p: "q" in p.name),
        ({"include": r"\.1\."}, lambda p: p.layer == 1),
        ({"include": ["^embed$", "mix"]}, lambda p: p.name in ("embed", "layer.1.mixer")),
        ({"exclude": r"layer\.\d"}, lambda p: p.name == "embed"),
        ({"exclude": ["q$", "k$"]}, lambda p: p.name[-1] not in "qk"),
        ({"include": "layer", "exclude": "mixer"}, lambda p: p.role in set("qkvo")),
        ({"roles": "q,o"}, lambda p: p.role in set("qo")),
        ({"roles": " q , o "}, lambda p: p.role in set("qo")),
        ({"roles": ["other"]}, lambda p: p.role == "other"),
        ({"layers": "1"}, lambda p: p.layer == 1),
        ({"layers": "0,2-10"}, lambda p: p.layer in (0, 2, 10)),
        ({"layers": 10}, lambda p: p.layer == 10),
        ({"layers": 0}, lambda p: p.layer == 0),
        ({"layers": range(3)}, lambda p: p.layer in (0, 1, 2)),
        ({"layers": [0, "2-3"]}, lambda p: p.layer in (0, 2)),
        ({"roles": "q", "layers": "2", "include": "layer"}, lambda p: p.name == "layer.2.q"),
    ],
)
def test_every_condition_given_must_hold(given, condition):
    assert kept(**given) == all_names(condition)


def test_matrices_outside_the_layers_are_in_no_layer():
    assert "embed" not in kept(layers="0-1000")


def test_each_matrix_left_out_says_which_option_did_it():
    selection = Selection.parse(include="layer", exclude="k$", roles="q,v", layers="0")
    _, skipped = selection.split(PAIRS)
    reasons = {row.name: row.reason for row in skipped}
    assert reasons["embed"] == "not selected by include"
    assert reasons["layer.0.k"] == "not selected by exclude"
    assert reasons["layer.0.o"] == "not selected by roles"
    assert reasons["layer.1.q"] == "not selected by layers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"include": "("}, r"include='\(' is not a regular expression: missing \)"),
        ({"exclude": ["q", "[a-"]}, r"exclude='\[a-' is not a regular expression"),
        ({"roles": "q,query"}, "Unknown role 'query'. Expected one of embed.*other"),
        ({"layers": "3-"}, "layers='3-' cannot be read. Expected numbers and ranges: 0,3-5"),
        ({"layers": "-1"}, "layers='-1' cannot be read"),
        ({"layers": "a"}, "layers='a' cannot be read"),
        ({"layers": "1.5"}, "layers='1.5' cannot be read"),
        ({"layers": "5-2"}, "layers='5-2' is an empty range"),
    ],
)
def test_what_cannot_be_read_is_quoted(given, message):
    with pytest.raises(UsageError, match=message):
        Selection.parse(**given)


@pytest.mark.timeout(60)  # written out, the layers would fill any memory
def test_a_range_of_any_length_costs_nothing():
    assert kept(layers="1-999999999999999999999") == all_names(lambda p: (p.layer or 0) >= 1)


def test_a_selection_of_nothing_says_what_there_is():
    with pytest.raises(UsageError) as caught:
        Selection.parse(layers="7").split(PAIRS)
    message = str(caught.value)
    assert "leaves no matrix of 18" in message
    assert "roles embed, q, k, v, o, other" in message
    assert "layers 0 to 10" in message and "'embed'" in message


def test_no_pairs_at_all_is_not_the_fault_of_the_selection():
    assert Selection.parse(roles="q").split([]) == ([], [])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"include": ["a", "b"], "exclude": "c", "roles": "o,q", "layers": "0,3-5"},
        {"layers": 4},
    ],
)
def test_a_description_reads_back_as_the_same_selection(given):
    selection = Selection.parse(**given)
    assert Selection.parse(**selection.describe()) == selection


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"include": "q_proj"}, "q_proj"),
        ({"exclude": "layers"}, "embed|head"),
        ({"roles": "q,down"}, "q_proj|down_proj"),
        ({"roles": "head"}, "^lm_head.weight$"),
        ({"layers": "0,2"}, r"layers\.[02]\."),
        ({"layers": "1-2", "roles": "gate"}, r"layers\.[12]\.mlp\.gate"),
    ],
)
def test_on_the_names_of_a_llama(llama, given, pattern):
    pairs, _ = pair_checkpoints(open_checkpoint(llama.base), open_checkpoint(llama.post))
    chosen, _ = Selection.parse(**given).split(pairs)
    assert {one.name for one in chosen} == {n for n in llama.matrices if re.search(pattern, n)}
