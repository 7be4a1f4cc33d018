"""Usage: polarax plan --base=BASE --post=POST.

Says what compare would do, from the headers alone: the stacks, what is skipped, bytes to read, floating-point
operations, peak memory. Takes the flags of compare.
"""

from collections import Counter

from absl import flags

from polarax.commands.comparison_flags import define_comparison_flags, request_from_flags


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_comparison_flags(values)
    flags.DEFINE_boolean("names", False, "Also list every matrix and every skipped tensor.", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Plans; returns the exit code."""
    plan = request_from_flags(values).plan
    print(f"{'stack':<24}{'matrices':>9}  {'dtype':<22}{'read':>10}  {'operations':>12}  roles")
    for stack in plan.stacks:
        first = stack.pairs[0]
        dtypes = first.dtype_base.name
        if first.dtype_post != first.dtype_base:
            dtypes += f" / {first.dtype_post.name}"
        roles = ",".join(dict.fromkeys(pair.role for pair in stack.pairs))
        print(
            f"{stack.label:<24}{len(stack.pairs):>9}  {dtypes:<22}{_bytes(stack.bytes_stored):>10}  "
            f"{stack.operations / 1e9:>8.1f} GFLOP  {roles}"
        )
        if values.names:
            for pair in stack.pairs:
                print(f"    {pair.name}")
    print()
    print(f"compare    {plan.matrices} matrices in {len(plan.stacks)} stacks")
    print(f"skip       {len(plan.skipped)} tensors")
    for reason, count in Counter(row.reason for row in plan.skipped).most_common(None if values.names else 8):
        print(f"             {count:>6}  {reason}")
    if values.names:
        for row in plan.skipped:
            print(f"    {row.name}: {row.reason}")
    print(f"read       {_bytes(plan.bytes_to_read)}")
    print(f"operations {plan.operations / 1e9:.1f} GFLOP (nominal, two SVDs with vectors and one without a matrix)")
    print(f"memory     about {_bytes(plan.peak_memory)} at peak, on one CPU host")
    if plan.warning:
        print(f"           {plan.warning}")
    return 0


def _bytes(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
