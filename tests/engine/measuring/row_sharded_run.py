"""Measures matrices whose rows are divided over 4 simulated devices; prints JSON. Run by test_row_shards.py."""

import dataclasses
import json
import re
import sys

import jax
import ml_dtypes
import numpy as np
from jax import export

from polarax.measuring.compiled_parts import CompiledParts
from polarax.measuring.program import measure_in_parts
from polarax.measuring.row_shards import RowShards, RowSteps
from polarax.planning.measurement import Measurement

ROWS, COLS = 203, 48  # rows that no number of devices divides
FRAMES = Measurement(("change", "scaling", "rotation", "budget"))
SPECTRA = Measurement(("change", "scaling"))
POLAR = Measurement(("polar",), by_products=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """A matrix and its posts."""

    condition: float = 1e3
    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
    posts: int = 1
    rank: int = COLS
    rows: int = ROWS
    entry: float | None = None  # one that the post has instead of a number
    measurement: Measurement = FRAMES


CASES = {
    "everything": Case(measurement=Measurement()),
    "several posts": Case(posts=2, dtype=np.dtype(np.float32)),
    "float64": Case(dtype=np.dtype(np.float64), condition=1e2),
    "blurred": Case(posts=2, dtype=np.dtype(np.float32), condition=1e6),
    "of lower rank": Case(dtype=np.dtype(np.float32), rank=COLS - 1),
    "by thin SVDs of few rows": Case(rows=COLS + 2, measurement=dataclasses.replace(FRAMES, method="lapack")),
    "spectra alone": Case(dtype=np.dtype(np.float32), measurement=SPECTRA),
    "not finite": Case(dtype=np.dtype(np.float32), entry=np.nan, measurement=SPECTRA),
    "by polar factors": Case(posts=2, dtype=np.dtype(np.float32), condition=1e2, measurement=POLAR),
}


def matrices(case):
    """Base and posts, (m, n), as they are stored."""
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.normal(size=(side, COLS)))[0] for side in (case.rows, COLS))
    spikes = np.geomspace(1, 0.2, 4)
    values = np.concatenate([spikes, np.geomspace(0.1, 1 / case.condition, COLS - len(spikes))])
    base = ((left * values) @ right.T).astype(case.dtype)
    base[:, case.rank :] = 0
    posts = []
    for _ in range(case.posts):
        moved = base.astype(np.float64)
        moved = 1.01 * moved + 0.02 * moved.std() * rng.normal(size=moved.shape) * (base != 0)
        posts.append(moved.astype(case.dtype))
    if case.entry is not None:
        posts[0][-1, 3] = case.entry  # in the share that is filled up
    return base, posts


def numbers():
    """The readings of each case, by all devices and by one."""
    # As programs of the first device: what is the same in both is compiled once.
    alone = CompiledParts(None, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    divided, found = RowShards(), {}
    for name, case in CASES.items():
        base, posts = matrices(case)
        stacks = base[None], tuple(post[None] for post in posts)
        given = {"measurement": case.measurement, "pairs": ((0, 1),) if case.posts > 1 else ()}
        with jax.enable_x64(True):
            both = divided.measure(*stacks, **given), jax.device_get(measure_in_parts(alone, *stacks, **given))
        found[name] = [
            [{column: np.asarray(x, float).tolist() for column, x in one.items()} for one in (*side.posts, *side.pairs)]
            for side in both
        ]
    return found


def programs():
    """What each program of a route over rows is, on platforms that take this route."""
    made = recorded_programs()
    measured = {}
    for platform, how in {"cuda": {}, "tpu": {"method": "polar", "dtype": "float32"}}.items():
        case = dataclasses.replace(CASES["blurred"], measurement=dataclasses.replace(FRAMES, **how))
        base, posts = matrices(case)
        with jax.enable_x64(platform == "cuda"):
            RowShards().measure(
                base[None], [post[None] for post in posts], measurement=case.measurement, pairs=((0, 1),)
            )
            measured |= {platform: lowered(platform, made)} | ({"cpu": compiled(made)} if platform == "cuda" else {})
        made.clear()
    return measured


def recorded_programs():
    """What programs are made of, as a list that grows: a name, the function, shapes of its arguments."""
    made, call = [], RowSteps._call

    def recorded(self, function, made_of, *arguments):
        described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
        made.append((made_of[0].__name__, function, described))
        return call(self, function, made_of, *arguments)

    RowSteps._call = recorded
    return made


def lowered(platform, made):
    """Of each program for a platform: what is reduced over devices, what is gathered, the calls and the float64."""
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in ("Qr", "cusolver_geqrf_ffi", "Eigh")]
    found = {}
    for name, function, arguments in made:
        program = export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(*arguments)
        text = program.mlir_module()
        found[name] = {
            "collectives": sorted(set(re.findall(r"stablehlo\.(all_\w+|collective_\w+|reduce_scatter)", text))),
            "calls": sorted(set(re.findall(r"stablehlo\.custom_call @(\w+)", text))),
            "float64": bool(re.search(r"tensor<(\d+x)*f64>", text)),
            "products": re.findall(r"stablehlo\.dot_general.*", text),
        }
    return found


def compiled(made):
    """The longest side of any array in each compiled program."""
    found = {}
    for name, function, arguments in made:
        text = jax.jit(function).lower(*arguments).compile().as_text()
        found[name] = max(int(size) for dims in re.findall(r"\w+\[([\d,]+)\]", text) for size in dims.split(","))
    return found


def main(what):
    assert jax.local_device_count() == 4
    print(json.dumps(numbers() if what == "numbers" else programs()))


if __name__ == "__main__":
    main(*sys.argv[1:])
