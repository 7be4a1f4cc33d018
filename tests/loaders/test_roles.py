"""What is said of roles, against what is known of transformers."""

import pytest

from polarax.loaders import ROLES
from polarax.loaders.architectures import ARCHITECTURES
from polarax.loaders.roles import OTHER, ROLE, Place, Side


def named(wanted):
    return {name for name, role in ROLE.items() if wanted(role)}


def test_every_role_of_a_table_has_a_record():
    rules = [rule for table in ARCHITECTURES for rule in (*table.in_layer.values(), *table.outside.values())]
    assert {rule.role for rule in rules} <= set(ROLES)
    assert tuple(ROLE) == ROLES
    assert [role.name for role in ROLE.values()] == list(ROLES)


def test_the_output_projections_write_to_the_residual_stream_from_heads_and_units():
    writing = named(lambda role: role.rows is Side.RESIDUAL and role.place is not Place.OUTSIDE)
    assert writing == {"o", "cross_o", "down"}
    assert named(lambda role: role.divided_by_rows) <= writing
    assert named(lambda role: role.columns is Side.HEADS) == {"o", "cross_o"}


def test_what_is_outside_the_layers():
    outside = named(lambda role: role.place is Place.OUTSIDE)
    assert outside == {"embed", "position", "token_type", "patch", "pooler", "head"}
    assert named(lambda role: not role.tracked) == outside - {"pooler"}
    assert named(lambda role: role.rows is Side.TOKENS) == {"embed", "head"}


@pytest.mark.parametrize("role", ["q", "k", "v", "cross_q", "gate", "up", "qkv", "gate_up", "q_a", "kv_a", "router"])
def test_what_reads_the_residual_stream(role):
    assert ROLE[role].columns is Side.RESIDUAL


def test_of_a_name_that_no_table_has_nothing_is_known():
    assert ROLE[OTHER].place is Place.UNKNOWN
    assert {ROLE[OTHER].rows, ROLE[OTHER].columns} == {Side.OTHER}
