"""That stacks divide over hosts whole, alike wherever that is worked out, and near the best balance there is."""

import itertools

import numpy as np
import pytest

import polarax
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.division import balance, divide_stacks
from polarax.planning.selection import Selection


def stacks_of(shapes):
    """One stack for each matrix: memory allows no more."""
    tree = {f"w{place}": np.broadcast_to(np.float32(1), shape) for place, shape in enumerate(shapes)}
    checkpoint = polarax.open_checkpoint(tree)
    stacks = plan_posts(checkpoint, {"": checkpoint}, Selection(), memory_bytes=1).stacks
    assert len(stacks) == len(shapes)
    return stacks


def random_stacks(count, seed=0):
    return stacks_of(np.random.default_rng(seed).integers(1, 200, (count, 2)).tolist())


@pytest.mark.parametrize("hosts", [1, 2, 3, 7, 40, 100])
def test_every_stack_goes_to_one_host_in_the_order_of_the_run(hosts):
    stacks = random_stacks(40)
    shares = divide_stacks(stacks, hosts)
    assert len(shares) == hosts
    numbers = [[stack.number for stack in share.stacks] for share in shares]
    assert sorted(itertools.chain(*numbers)) == list(range(40))
    assert all(own == sorted(own) for own in numbers)
    assert sum(share.matrices for share in shares) == 40
    assert sum(share.bytes_to_read for share in shares) == sum(stack.bytes_stored for stack in stacks)
    assert sum(share.operations for share in shares) == pytest.approx(sum(stack.operations for stack in stacks))


def test_a_division_depends_on_nothing_else():
    assert [divide_stacks(random_stacks(30), 4)] == [divide_stacks(random_stacks(30), 4)]
    alike = divide_stacks(stacks_of([(4, 4)] * 6), 3)
    assert [[stack.number for stack in share.stacks] for share in alike] == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_share_is_within_grahams_bound_of_the_best_division(hosts, seed):
    stacks = random_stacks(8, seed)
    best = min(
        max(sum(s.operations for s, own in zip(stacks, owners, strict=True) if own == host) for host in range(hosts))
        for owners in itertools.product(range(hosts), repeat=len(stacks))
    )
    largest = max(share.operations for share in divide_stacks(stacks, hosts))
    assert best <= largest <= (4 / 3 - 1 / (3 * hosts)) * best


def test_balance_is_the_largest_share_over_the_mean():
    assert balance(divide_stacks(stacks_of([(4, 4)] * 6), 3)) == 1
    assert balance(divide_stacks(stacks_of([(4, 4)] * 4), 3)) == pytest.approx(2 / (4 / 3))
    assert balance(divide_stacks(stacks_of([(4, 4)]), 5)) == 5
    assert balance(divide_stacks((), 2)) == 1


def test_no_hosts():
    with pytest.raises(ValueError, match=r"hosts must be at least 1\. Got 0"):
        divide_stacks(random_stacks(2), 0)
