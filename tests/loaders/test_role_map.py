import json

import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints, parse_role_map

TABLE = {
    r"^stages\.(?P<layer>\d+)\.mixer\.wo": "o",
    r"^stages\.(?P<layer>[0-9]+)\.ffn\.(?P<expert>\d{1,3})\.out": {"role": "down", "axes": "i o"},
    r"^stages\.(?P<layer>\d+)\.bank": {"role": "up", "axes": "E o i"},
    r"^model\.layers\.(?P<layer>\d+)\.self_attn\.q_proj": "k",
}


@pytest.fixture(params=["dict", "file", "parsed"])
def table(request, tmp_path):
    if request.param == "dict":
        return TABLE
    if request.param == "parsed":
        return parse_role_map(TABLE)
    path = tmp_path / "roles.json"
    path.write_text(json.dumps(TABLE))
    return path


def test_a_users_table_goes_before_the_others(table):
    rng = np.random.default_rng(0)
    down, bank = rng.normal(size=(3, 2)), rng.normal(size=(2, 4, 3))
    checkpoint = open_checkpoint(
        {
            "stages.3.mixer.wo.weight": np.zeros((2, 2)),
            "stages.3.ffn.11.out.weight": down,
            "stages.3.bank": bank,
            "model.layers.0.self_attn.q_proj.weight": np.zeros((2, 2)),
            "model.layers.0.self_attn.v_proj.weight": np.zeros((2, 2)),
        }
    )
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint, role_map=table)
    assert skipped == []
    assert {pair.name: (pair.layer, pair.role, pair.expert) for pair in pairs} == {
        "stages.3.mixer.wo.weight": (3, "o", None),
        "stages.3.ffn.11.out.weight": (3, "down", 11),
        "stages.3.bank[expert=0]": (3, "up", 0),
        "stages.3.bank[expert=1]": (3, "up", 1),
        "model.layers.0.self_attn.q_proj.weight": (0, "k", None),
        "model.layers.0.self_attn.v_proj.weight": (0, "v", None),
    }
    read = {pair.name: pair.base.read(checkpoint).result() for pair in pairs}
    np.testing.assert_array_equal(read["stages.3.ffn.11.out.weight"], down.T)
    np.testing.assert_array_equal(read["stages.3.bank[expert=1]"], bank[1])


def test_no_table():
    assert parse_role_map(None) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "role_map: expected an object of regular expressions to roles"),
        ([], "role_map: expected an object"),
        ({"(": "q"}, r"role_map: '\(' is not a regular expression: missing \)"),
        ({"w": "quarry"}, "role_map: 'w': unknown role 'quarry'; expected one of embed, "),
        ({"w": 3}, 'expected a role, or an object of "role" and "axes". Got 3'),
        ({"w": {"axes": "o i"}}, 'expected a role, or an object of "role" and "axes"'),
        ({"w": {"role": "q", "axis": "o i"}}, 'expected a role, or an object of "role" and "axes"'),
        ({"w": {"role": "q", "axes": "o x"}}, "axes must be words of o, i, L, E and 1, with an o and an i. Got 'o x'"),
        ({"w": {"role": "q", "axes": "o"}}, "with an o and an i"),
        ({r"(?P<block>\d+)": "q"}, "has the group 'block'; expected layer or expert"),
        ({r"(?P<layer>.*)": "q"}, "the group 'layer' must be of digits"),
    ],
)
def test_an_entry_that_cannot_be_used(table, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_role_map(table)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_used(tmp_path):
    path = tmp_path / "roles.json"
    with pytest.raises(CheckpointError, match=r"roles.json: cannot be read: No such file"):
        parse_role_map(path)
    path.write_text("{'w': 'q'}")
    with pytest.raises(CheckpointError, match=r"roles.json: expected JSON: "):
        parse_role_map(path)
    path.write_text('{"w": "quarry"}')
    with pytest.raises(CheckpointError, match=r"roles.json: 'w': unknown role"):
        parse_role_map(str(path))


def test_a_number_of_absurd_length_is_no_layer():
    assert parse_role_map({r"l\.(?P<layer>\d+)": "q"}).look_up("l." + "9" * 5000) is None
