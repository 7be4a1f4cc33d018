"""Run directories of models that were never computed: made-up numbers, written as a run writes them."""

import contextlib
import types

import numpy as np

import polarax
from polarax.loaders import Skipped
from polarax.metrics import GROUPS, columns
from polarax.results.run_directory import RunWriter

SEVEN_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SHAPES = {"k": (64, 256), "v": (64, 256), "gate": (512, 256), "up": (512, 256), "down": (256, 512)}


def matrix(role="q", layer=0, expert=None, name=None, **changes):
    """What a row of matrices.csv says of who it is; the numbers are added when it is written."""
    shape = SHAPES.get(role, (256, 256))
    expert_part = "" if expert is None else f".experts.{expert}"
    return {
        "name": name or f"model.layers.{layer}.{role}{expert_part}.weight",
        "layer": layer,
        "role": role,
        "expert": expert,
        "rows": shape[0],
        "cols": shape[1],
        "dtype_base": "bfloat16",
        "dtype_post": "bfloat16",
        "status": "ok",
        **changes,
    }


def write_run(
    path, matrices, *, groups=tuple(GROUPS), base="base", post="post", finished=True, arrays=True, skipped=()
):
    """Writes a run of these matrices.

    Args:
        path: A folder that is not there yet.
        matrices: What `matrix` returned; a number given there wins over the one made up here.
        groups: Metric groups that were measured.
        base: Where the base was.
        post: Where the post was.
        finished: Or interrupted after the last stack.
        arrays: Write spectra, principal angles and rotations too.
        skipped: (name, reason) of what was left out.
    """
    path.mkdir(parents=True)
    rng = np.random.default_rng(len(matrices))
    description = {
        "base": {"location": base, "fingerprint": "0" * 64},
        "post": {"location": post, "fingerprint": "1" * 64},
        "flags": {"metrics": list(groups), "top_k": 8},
        "matrices": len(matrices),
        "environment": {"versions": {"polarax": polarax.__version__}, "platform": "none", "backend": "cpu"},
        "started": "2025-01-01T00:00:00Z",
    }
    writer = RunWriter(path, description, columns(groups), [Skipped(*row) for row in skipped])
    with contextlib.closing(writer):
        stacks = {}
        for place, one in enumerate(matrices):
            stacks.setdefault((one["rows"], one["cols"]), []).append((place, one))
        for number, ((rows, cols), members) in enumerate(stacks.items()):
            pairs = [types.SimpleNamespace(name=one["name"]) for _, one in members]
            stack = types.SimpleNamespace(label=f"{number:04d}-{max(rows, cols)}x{min(rows, cols)}", pairs=pairs)
            numbers, made = _numbers(rng, len(members), min(rows, cols), max(rows, cols), arrays)
            table = [{**{k: v[i] for k, v in numbers.items()}, **one} for i, (_, one) in enumerate(members)]
            writer.write_stack(stack, table, made, [place for place, _ in members])
        if finished:
            writer.finish({"read": 1.0, "compile": 2.0, "compute": 3.0}, polarax.Run.open(path).summary())
    return polarax.Run.open(path)


def _numbers(rng, count, r, m, arrays):
    """Made-up readings that a small random change could have."""
    s_base = np.geomspace(4, 0.04, r) * rng.uniform(0.9, 1.1, (count, 1))
    drift = rng.uniform(0.005, 0.02, count)
    deviation = drift * np.linalg.norm(s_base, axis=1) / np.sqrt(m * r)
    s_post = s_base + deviation[:, None] * rng.normal(size=s_base.shape)
    split = rng.normal(0, 0.02, count)
    rotated = r * (r - 1) / (m * r)
    alpha = np.sum(s_base * s_post, axis=1) / np.sum(s_base**2, axis=1)
    nf = rng.uniform(0.02, 0.03, count)
    readings = {
        "drift": drift,
        "unchanged": rng.uniform(0, 0.3, count),
        "rounding_share": rng.uniform(0, 0.6, count),
        "alpha": alpha,
        "alpha_null": 1 + drift**2 / 2,
        "alpha_null_std": deviation / np.linalg.norm(s_base, axis=1),
        "alpha_z": rng.normal(size=count),
        "ratio_cv": np.std(s_post / s_base, axis=1),
        "ratio_cv_null": np.sqrt(np.mean((deviation[:, None] / s_base) ** 2, axis=1)),
        "nf": nf,
        "nf_null": nf * rng.uniform(0.95, 1.05, count),
        "nf_null_std": nf * 0.01,
        "nf_excess": rng.uniform(0.95, 1.05, count),
        "nf_z": rng.normal(size=count),
        "budget_scaling": np.full(count, r / (m * r)),
        "budget_coordinated": rotated / 2 * (1 + split),
        "budget_discordant": rotated / 2 * (1 - split),
        "budget_outside": np.full(count, 1 - r / m),
        "coordination": split,
        "coordination_null_std": np.full(count, 0.004),
        "coordination_z": split / 0.004,
        "overlap_left": rng.uniform(0.97, 1, count),
        "overlap_right": rng.uniform(0.97, 1, count),
        "intruders_left": np.zeros(count, int),
        "intruders_right": np.zeros(count, int),
        "control_reach": 100 * drift,
    }
    for part in ("scaling", "coordinated", "discordant", "outside"):
        readings[f"budget_{part}_null"] = readings[f"budget_{part}"]
    readings = {name: values.tolist() for name, values in readings.items()}
    readings["control"] = ["first order" if reach <= 1 else "out of range" for reach in readings["control_reach"]]
    cosines = -np.sort(-rng.uniform(0.95, 1, (2, count, 8)))
    turned = np.abs(np.eye(64) + 0.02 * rng.normal(size=(count, 64, 64))).astype(np.float32)
    made = {
        "s_base": s_base,
        "s_post": s_post,
        "cosines_left": cosines[0],
        "cosines_right": cosines[1],
        "rotation_left": turned,
        "rotation_right": turned[:, ::-1],
        "rotation_difference": np.abs(turned - turned[:, ::-1]),
    }
    return readings, made if arrays else {"s_base": s_base, "s_post": s_post}
