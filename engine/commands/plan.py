"""Usage: polarax plan --base=BASE [--post=POST ...].

Says what compare would do, from the headers alone: what is matched with what and how, what is skipped, the stacks,
bytes to read, floating-point operations, expected time, peak memory, and how the work divides over hosts. Takes the
flags of compare, --quick among them; of several processes the first one says it. Where compare would refuse, the plan
ends with its error. Without --post it plans for a post of the base's layout and dtypes.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
from absl import flags

from polarax.commands.comparison_flags import define_comparison_flags, print_wrapped, request_from_flags
from polarax.commands.plan_names import pair_line, pair_patterns, skipped_line, skipped_patterns
from polarax.commands.shared_flags import cluster_from_flags, define_host_flags
from polarax.errors import UsageError
from polarax.findings.coverage import accounts
from polarax.loaders import Pair
from polarax.measuring.kept_bases import kept_line
from polarax.planning.division import Limits, Share, balance, divide_stacks, limits, pieces
from polarax.planning.partners import describe_coverage
from polarax.planning.rates import DECOMPOSITIONS_SHARE, DEVICES, PRODUCTS_SHARE, Rates, measure_rates, typical_rates
from polarax.planning.request import Request, without_garbage_collection
from polarax.planning.stacks import Stack

_UNMEASURED = "none"
_THIS = "this"
_MOST_HOSTS = 1 << 16
_MOST_DEVICES = 1 << 10
_READ_RATE = 1e9  # bytes/s: about a fast network, or a good disk; a yardstick
_MOST_SHARES = 16  # hosts that get a line each; of more, the busiest and the least busy do
_BALANCED = 1.03  # the largest share over the mean that is not worth a word

_Row = TypeVar("_Row")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_comparison_flags(values)
    define_host_flags(values)
    flags.DEFINE_boolean(
        "names", False, "List every matrix with its partner, and every skipped tensor.", flag_values=values
    )
    flags.DEFINE_string(
        "device",
        _THIS,
        f"What the expected time is for: {_THIS} host's devices, measured in a moment; one of {', '.join(DEVICES)}, "
        f"from its data sheet; or {_UNMEASURED}.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "hosts",
        None,
        "Hosts to divide the matrices over; as many as there are processes by default.",
        lower_bound=1,
        upper_bound=_MOST_HOSTS,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "devices_per_host",
        None,
        "Devices of each host; as many as this one has by default.",
        lower_bound=1,
        upper_bound=_MOST_DEVICES,
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    """Plans; returns the exit code."""
    cluster = cluster_from_flags(values)
    if cluster is not None and cluster.process:
        return 0  # the first process says it for all
    if values.device not in (_THIS, _UNMEASURED, *DEVICES):
        known = ", ".join((_THIS, _UNMEASURED, *DEVICES))
        raise UsageError(f"Unknown device {values.device!r}. Expected one of {known}.")
    refused: list[Exception] = []
    with without_garbage_collection():
        elsewhere = values.device in DEVICES or values.devices_per_host not in (None, jax.local_device_count())
        request = request_from_flags(
            values,
            post_required=False,
            refused=refused,
            devices=(values.devices_per_host or jax.local_device_count(), 1) if elsewhere else None,
        )
        _print_names(request, values.names)
        print()
        if not values.post:
            print("post       taken to have the base's layout and dtypes")
        print(f"compare    {request.plan.matrices} matrices in {len(request.plan.stacks)} stacks")
        print(f"skip       {len(request.plan.skipped)} tensors")
        if request.plan.stacks:
            _print_work(values, request, values.hosts or (cluster.processes if cluster else 1))
    if refused:
        sys.stdout.flush()  # the error comes last
        raise refused[0]
    return 0


def _print_names(request: Request, names: bool) -> None:
    """How much of either model is compared, which matrices with which, and what is left out; once for all posts."""
    parts = dict(zip(request.posts, request.plan.parts, strict=True))
    print_wrapped(
        accounts(
            {
                label: describe_coverage(part.coverage, request.base, request.posts[label])
                for label, part in parts.items()
            },
            verb="To compare",
        )
    )
    partners: dict[str, dict[tuple[str, str], Pair]] = {name: {} for name in request.plan.names}
    for stack in request.plan.stacks:
        for of_post in stack.pairs_of_posts:
            for pair in of_post:
                partners[pair.name][pair.name_post, pair.matched_by] = pair
    pairs = [pair for of_name in partners.values() for pair in of_name.values()]
    _print_rows("matched", pairs, pair_line if names else None, pair_patterns)
    _print_rows("not compared", request.plan.skipped, skipped_line if names else None, skipped_patterns)


def _print_rows(
    title: str,
    rows: Sequence[_Row],
    line: Callable[[_Row], str] | None,
    patterns: Callable[[Iterable[_Row]], Iterable[str]],
) -> None:
    if rows:
        print(f"\n{title}")
        for text in map(line, rows) if line is not None else patterns(rows):
            print(f"    {text}")


def _print_work(values: flags.FlagValues, request: Request, hosts: int) -> None:
    """The stacks, and what they cost."""
    plan = request.plan
    print(f"read       {_bytes(plan.bytes_to_read)}")
    each = "two SVDs with vectors and one without a matrix"
    if request.measurement.quick:
        each = "products with a few columns"
    each += ", the base's once for all posts" * (len(plan.parts) > 1)
    print(f"operations {plan.operations / 1e9:.1f} GFLOP (nominal, {each})")
    print(f"memory     about {_bytes(plan.peak_memory)} at peak, on one CPU host")
    for number, line in enumerate(plan.rows_divided):
        print(f"{'device' if not number else '':<10} {line}")
    if request.keep_base:
        print(f"keep       {kept_line(plan.stacks, request.keep_base)}")
    if plan.warning:
        print(f"           {plan.warning}")
    # As a run divides: by rates that all hosts agree on, whatever those of the device turn out to be.
    divided_by = typical_rates(accelerator=True if values.device in DEVICES else None)
    shares = divide_stacks(pieces(plan.stacks, hosts, divided_by), hosts, divided_by)
    if len(shares) > 1:
        _print_shares(shares, limits(plan.stacks, hosts, divided_by))
    if values.device != _UNMEASURED:
        _print_expected(values, request, shares)
    print()
    _print_stacks(plan.stacks)


def _print_stacks(stacks: Sequence[Stack]) -> None:
    """One line for all stacks of a shape and a pair of dtypes, which one program computes."""
    print(f"{'first stack':<24}{'stacks':>7}{'matrices':>10}  {'dtype':<22}{'read':>10}  {'operations':>16}  roles")
    for (_, base, *posts), group in itertools.groupby(stacks, key=lambda stack: stack.program):
        members = list(group)
        pairs = [pair for stack in members for pair in stack.pairs]
        dtypes = base.name if {base} == {*posts} else " / ".join(one.name for one in (base, *posts))
        roles = ",".join(dict.fromkeys(pair.role for pair in pairs))
        print(
            f"{members[0].label:<24}{len(members):>7}{len(pairs):>10}  {dtypes:<22}"
            f"{_bytes(sum(stack.bytes_stored for stack in members)):>10}  "
            f"{sum(stack.operations for stack in members) / 1e9:>10.1f} GFLOP  {roles}"
        )


def _print_shares(shares: Sequence[Share], limit: Limits) -> None:
    """How much each host has, and how many hosts there is enough for."""
    line = f"divide     over {len(shares)} hosts: the largest share is {balance(shares):.2f} x the mean"
    print(line + f", {limit.balance:.2f} at best, since no matrix is split" * (limit.balance > _BALANCED))
    busy = [(host, share) for host, share in enumerate(shares) if share.stacks]
    idle = len(shares) - len(busy)
    if len(busy) > _MOST_SHARES:
        order = sorted(busy, key=lambda of_host: -of_host[1].cost)
        busy = [order[0], order[-1]]
        print("             the busiest and the least busy:")
    for host, share in busy:
        print(
            f"             host {host}: {_count(share.matrices, 'matrix', 'matrices')}, {_bytes(share.bytes_to_read)}, "
            f"{share.operations / 1e9:.1f} GFLOP"
        )
    if idle:
        print(f"             {_count(idle, 'host', 'hosts')}: nothing, there are too few matrices")
    if len(shares) > limit.hosts:
        print(
            f"             no more than {_count(limit.hosts, 'host', 'hosts')} can be kept busy: the largest matrix "
            f"alone takes {limit.largest:.1f} x the mean"
        )


def _print_expected(values: flags.FlagValues, request: Request, shares: Sequence[Share]) -> None:
    """How long the busiest host computes and reads, by what rate that was told, and what takes longest of all."""
    devices = values.devices_per_host or jax.local_device_count()
    rates, on, how = _rates(values, devices)
    if values.device in DEVICES and request.plan.peak_memory > DEVICES[values.device].memory * 1e9:
        how += f"; and it has {DEVICES[values.device].memory} GB, less than the memory above"
    several, method = len(shares) > 1, request.measurement.method
    largest = max(request.plan.stacks, key=lambda stack: rates.seconds_of_a_matrix(stack, method))
    alone = devices * rates.seconds_of_a_matrix(largest, method)
    parts = {
        "computing": max(rates.seconds(share.stacks, method) for share in shares),
        "reading": max(share.bytes_to_read for share in shares) / _READ_RATE,
        "starting and compiling": max(rates.starting_seconds(share.stacks) for share in shares),
    }
    computing, reading, starting = parts.values()
    longest = max(parts, key=parts.__getitem__)
    if several and longest == "computing" and alone * _BALANCED >= computing:
        longest = f"the largest matrix ({largest.shape[0]} x {largest.shape[1]})"
    each, of_all = "", ""
    if several:
        each, of_all = " on the busiest host", f" a host ({len(shares) * _READ_RATE / 1e9:.0f} GB/s for all)"
    print(f"expect     roughly {_duration(computing)} of computing on {on}{each} ({how})")
    print(f"           and meanwhile {_duration(reading)} of reading{each}, at {_READ_RATE / 1e9:.0f} GB/s{of_all}")
    print(
        f"           after {_duration(starting)} of starting and compiling; less when its programs are kept from before"
    )
    whole = _duration(starting + max(computing, reading))
    print(f"           in all {whole}{', simulated: no host was asked' * several}; what takes longest is {longest}")


def _rates(values: flags.FlagValues, devices: int) -> tuple[Rates, str, str]:
    """The rates of a host, whose devices they are, and how they are known."""
    if values.device == _THIS:
        rates = measure_rates().times(devices / jax.local_device_count())
        how = (
            f"measured: products {rates.products / 1e9:.0f}, eigenproblems {rates.decompositions / 1e9:.1f} GFLOP/s, "
            "scaled from one size"
        )
        here = devices == jax.local_device_count()
        return rates, "this host's devices" if here else f"{devices} devices like this host's", how
    device = DEVICES[values.device]
    rates = device.rates(values.dtype).times(devices)
    on = f"one {values.device}" if devices == 1 else f"{devices} x {values.device}"
    if rates == (device.measured and device.measured.times(devices)):
        return rates, on, "measured on one, with pairs of 1536 to 4096 rows"
    how = (
        f"not measured: products at {PRODUCTS_SHARE:.0%}, decompositions at {DECOMPOSITIONS_SHARE:.0%} of the data "
        "sheet's peak; several times more or less"
    )
    return rates, on, how


def _count(number, one, several):
    return f"{number} {one if number == 1 else several}"


def _bytes(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _duration(seconds):
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
