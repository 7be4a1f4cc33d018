"""That the pieces of stacks divide over hosts, alike wherever it is worked out, and near the best balance there is."""

import itertools

import numpy as np
import pytest

import polarax
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.division import balance, cost, divide_stacks, limits, pieces
from polarax.planning.rates import Rates, typical_rates
from polarax.planning.selection import Selection


def planned(shapes, *, memory_bytes=2**40, devices=1, lanes=1):
    tree = {f"w{place}": np.broadcast_to(np.float32(1), shape) for place, shape in enumerate(shapes)}
    checkpoint = polarax.open_checkpoint(tree)
    posts = {"": checkpoint}
    return plan_posts(checkpoint, posts, Selection(), memory_bytes=memory_bytes, devices=devices, lanes=lanes).stacks


def stacks_of(shapes):
    """One stack for each matrix: memory allows no more."""
    stacks = planned(shapes, memory_bytes=1)
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


class TestPieces:
    SHAPES = [(96, 32)] * 75 + [(64, 64)] * 40 + [(512, 256)] * 2

    @pytest.mark.parametrize("hosts", [2, 3, 8, 100])
    @pytest.mark.parametrize(("devices", "lanes"), [(1, 1), (4, 1), (1, 3)])
    def test_they_hold_every_matrix_once_and_what_they_are_of(self, hosts, devices, lanes):
        stacks = planned(self.SHAPES, devices=devices, lanes=lanes)
        cut = pieces(stacks, hosts)
        for stack in stacks:
            of_stack = [piece for piece in cut if piece.number == stack.number]
            assert [pair for piece in of_stack for pair in piece.pairs] == list(stack.pairs)
            assert [piece.start for piece in of_stack] == list(
                itertools.accumulate((len(piece.pairs) for piece in of_stack[:-1]), initial=0)
            )
            for piece in of_stack:
                assert (piece.label, piece.shape) == (stack.label, stack.shape)
                assert len(piece.pairs) <= piece.size <= stack.size
                assert piece.size % piece.devices == piece.size % piece.lanes == 0
        assert [(piece.number, piece.start) for piece in cut] == sorted((piece.number, piece.start) for piece in cut)

    @pytest.mark.parametrize("hosts", [2, 3, 8, 100])
    @pytest.mark.parametrize("devices", [1, 4])
    def test_those_of_a_shape_share_a_program(self, hosts, devices):
        sizes = {}
        for piece in pieces(planned(self.SHAPES, devices=devices), hosts):
            sizes.setdefault(piece.shape, set()).add(piece.size)
        assert all(len(of_shape) == 1 for of_shape in sizes.values())

    @pytest.mark.parametrize("hosts", [2, 3, 8])
    @pytest.mark.parametrize("devices", [1, 4])
    def test_each_is_a_small_part_of_a_share_or_fills_the_devices_once(self, hosts, devices):
        stacks = planned(self.SHAPES * 4, devices=devices)
        share = sum(map(cost, stacks)) / hosts
        for piece in pieces(stacks, hosts):
            assert piece.size == devices or cost(piece) <= share / 32
            # And there are not more than need be: twice as long would be too long.
            twice = 2 * (piece.size + devices) / piece.size * cost(piece)
            assert twice > share / 32 or piece.size == max(s.size for s in stacks if s.shape == piece.shape)

    def test_one_host_takes_stacks_as_they_are(self):
        stacks = planned(self.SHAPES)
        assert pieces(stacks, 1) == list(stacks)
        assert pieces((), 3) == []

    def test_what_is_cut_may_be_cut_again(self):
        (stack,) = planned([(8, 4)] * 12)
        again = stack.piece(2, 9).piece(3, 4)
        assert (again.start, again.pairs) == (5, stack.pairs[5:9])

    def test_lanes_are_filled_while_there_is_enough_for_all_hosts(self):
        stacks = planned([(8, 4)] * 32, lanes=4)
        assert {(len(piece.pairs), piece.size, piece.lanes) for piece in pieces(stacks, 4)} == {(4, 4, 4)}
        assert {(piece.size, piece.lanes) for piece in pieces(stacks, 16)} == {(2, 2)}
        assert {(len(piece.pairs), piece.size, piece.lanes) for piece in pieces(stacks, 40)} == {(1, 1, 1)}

    @pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 0), (3, 10)])
    def test_a_piece_that_is_not_there(self, start, count):
        (stack,) = planned([(8, 4)] * 12)
        with pytest.raises(ValueError, match=f"A piece of {count} from {start} on is not within 12 matrices"):
            stack.piece(start, count)

    def test_a_piece_that_does_not_fit(self):
        (stack,) = planned([(8, 4)] * 12)
        with pytest.raises(ValueError, match="does not fit into a size of 2"):
            stack.piece(0, 3, size=2)

    def test_no_hosts(self):
        with pytest.raises(ValueError, match=r"hosts must be at least 1\. Got 0"):
            pieces(random_stacks(2), 0)


def test_a_division_depends_on_nothing_else():
    assert [divide_stacks(random_stacks(30), 4)] == [divide_stacks(random_stacks(30), 4)]
    alike = divide_stacks(stacks_of([(4, 4)] * 6), 3)
    assert [[stack.number for stack in share.stacks] for share in alike] == [[0, 3], [1, 4], [2, 5]]


def best_division(stacks, hosts):
    """The least that the largest share can cost, of all divisions."""
    return min(
        max(sum(cost(s) for s, own in zip(stacks, owners, strict=True) if own == host) for host in range(hosts))
        for owners in itertools.product(range(hosts), repeat=len(stacks))
    )


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_share_is_within_grahams_bound_of_the_best_division(hosts, seed):
    stacks = random_stacks(8, seed)
    best = best_division(stacks, hosts)
    largest = max(share.cost for share in divide_stacks(stacks, hosts))
    assert best <= largest <= (4 / 3 - 1 / (3 * hosts)) * best


def test_balance_is_the_largest_share_over_the_mean():
    assert balance(divide_stacks(stacks_of([(4, 4)] * 6), 3)) == 1
    assert balance(divide_stacks(stacks_of([(4, 4)] * 4), 3)) == pytest.approx(2 / (4 / 3))
    assert balance(divide_stacks(stacks_of([(4, 4)]), 5)) == 5
    assert balance(divide_stacks((), 2)) == 1


# Of the published configurations: matrices of each shape.
LLAMA_70B = {
    (128256, 8192): 2,  # embedding, head
    (8192, 8192): 160,  # q, o
    (8192, 1024): 160,  # k, v
    (28672, 8192): 240,  # gate, up, down
}
DEEPSEEK_V3 = {
    (129280, 7168): 2,
    (7168, 1536): 61,  # q_a
    (24576, 1536): 61,  # q_b
    (7168, 576): 61,  # kv_a
    (32768, 512): 61,  # kv_b
    (16384, 7168): 61,  # o
    (18432, 7168): 9,  # the three dense layers
    (256, 7168): 58,  # routers
    (7168, 2048): 58 * 3 * 257,  # experts, the shared ones among them
}
RATES = {"gpu": typical_rates(accelerator=True), "cpu": typical_rates(accelerator=False)}


@pytest.fixture(scope="module", params=["llama", "deepseek"])
def published(request):
    """Shapes of a model, and its stacks on hosts of one device and of eight."""
    counts = {"llama": LLAMA_70B, "deepseek": DEEPSEEK_V3}[request.param]
    shapes = [shape for shape, count in counts.items() for _ in range(count)]
    return request.param, {devices: planned(shapes, memory_bytes=2**36, devices=devices) for devices in (1, 8)}


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("devices_per_host", [1, 8])
@pytest.mark.parametrize("devices", [8, 64, 1024])
def test_published_models_are_in_balance_as_far_as_whole_matrices_can_be(published, devices, devices_per_host, rates):
    model, stacks = published
    stacks, hosts = stacks[devices_per_host], devices // devices_per_host
    # On CPUs two sizes of Llama's cost unlike enough that six or seven of either do not add up to the mean.
    most = 1.05 if (model, devices, rates) == ("llama", 64, "cpu") else 1.03
    kind, rates = rates, RATES[rates]
    shares = divide_stacks(pieces(stacks, hosts, rates), hosts, rates)
    bound = limits(stacks, hosts, rates)
    assert balance(shares) <= most * bound.balance
    if devices == 8 or (model, devices) == ("deepseek", 64):
        assert bound.balance == pytest.approx(1, abs=0.01)
    # 562 matrices, of which 402 count: at 64 some device has 7 where the mean is 6.3, and 1024 are more than there are.
    if (model, devices, devices_per_host, kind) == ("llama", 1024, 1, "gpu"):
        assert bound.hosts == 402
        assert bound.balance == bound.largest > 2.5


def test_the_limits_by_hand():
    alike = Rates(1.0, float("inf"))  # 6 m n^2 + 10 n^3: 16, 28 and 160 for these
    large, middle, small = (25, 1), (3, 1), (1, 1)
    stacks = stacks_of([large, *[middle] * 3, *[small] * 4])
    total = 160 + 3 * 28 + 4 * 16
    assert limits(stacks, 1, alike) == (1, 160 / total, 2)
    assert limits(stacks, 2, alike) == (160 / (total / 2), 160 / (total / 2), 2)
    assert limits(stacks, 5, alike) == (160 / (total / 5), 160 / (total / 5), 2)
    three = stacks_of([middle] * 3)
    assert limits(three, 2, alike) == (2 / 1.5, 1 / 1.5, 3)
    assert limits((), 3) == (1, 0, 1)


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_division_is_better_than_the_limit(hosts, seed):
    stacks = random_stacks(8, seed)
    best = best_division(stacks, hosts)
    found = limits(stacks, hosts)
    mean = sum(map(cost, stacks)) / hosts
    assert max(map(cost, stacks)) / mean == pytest.approx(found.largest)
    assert max(1, found.largest) <= found.balance <= best / mean * (1 + 1e-12)
    shares = divide_stacks(stacks, found.hosts)
    assert max(share.cost for share in shares) == pytest.approx(max(map(cost, stacks)))
    assert balance(divide_stacks(stacks, found.hosts + 1)) > balance(shares)


def test_no_hosts():
    with pytest.raises(ValueError, match=r"hosts must be at least 1\. Got 0"):
        divide_stacks(random_stacks(2), 0)
