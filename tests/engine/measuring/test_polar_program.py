"""The group "polar": from frames and by products, in memory and from the command line."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import polarax
from polarax.cli import main
from polarax.measuring.program import measure_stack
from polarax.metrics import CERTIFICATE_COLUMNS, columns
from polarax.planning import measurement as planned
from polarax.planning.measurement import Measurement
from polarax.planning.options import Options

SHARED = ("nf", "nf_null", "nf_null_std", "nf_excess", "nf_z", "budget_outside", "budget_outside_null")
OWN = tuple(f"{name}{end}" for name in ("symmetry", "nuclear_norm_ratio") for end in ("", "_null", "_null_std", "_z"))


def weight(shape, seed):
    """A bulk and spikes, of condition number 100: where the closed forms hold."""
    rng, size = np.random.default_rng([seed, *shape]), min(shape)
    values = np.concatenate([np.geomspace(10, 2, 3), np.linspace(1.5, 0.1, size - 3)])
    u, v = (np.linalg.qr(rng.normal(size=(side, size)))[0] for side in shape)
    return (u * values) @ v.T


def pairs(shape, count, drift=1e-3):
    base = np.stack([weight(shape, seed) for seed in range(count)])
    noise = np.random.default_rng(9).normal(size=base.shape)
    sizes = np.linalg.norm(base, axis=(1, 2), keepdims=True) / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    return base, base + drift * sizes * noise


@pytest.fixture
def checkpoints(tmp_path):
    """Two layers of q and o; the last o changed symmetrically in the base's frame."""
    trees = {"base": {}, "post": {}}
    for layer in range(2):
        for role in ("q", "o"):
            base, post = (x[0] for x in pairs((48, 48), 1, drift=1e-3 * (1 + layer)))
            if layer and role == "o":
                u, _, vt = np.linalg.svd(base)
                noise = np.random.default_rng(3).normal(size=base.shape)
                change = u @ (noise + noise.T) @ vt
                post = base + 2e-3 * np.linalg.norm(base) * change / np.linalg.norm(change)
            name = f"model.layers.{layer}.self_attn.{role}_proj.weight"
            trees["base"][name], trees["post"][name] = base, post
    for name, tree in trees.items():
        (tmp_path / name).mkdir()
        save_file(tree, tmp_path / name / "model.safetensors")
    return tmp_path


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """What is measured is what a device would be asked for that takes stacks as batches."""
    monkeypatch.setattr(planned, "takes_batches", lambda: True)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 40), "float32"),
        ((64, 24), "float64"),
        pytest.param((40, 40), "float64", marks=pytest.mark.exhaustive),
        pytest.param((64, 24), "float32", marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_by_products_and_from_frames(shape, dtype):
    base, post = pairs(shape, 3)
    with jax.enable_x64(True):
        by_products = measure_stack(
            base, (post,), measurement=Measurement(("polar",), dtype=dtype, by_products=True)
        ).posts[0]
        from_frames = measure_stack(base, (post,), measurement=Measurement(("polar",))).posts[0]
    assert not set(by_products) & {"s_base", "s_post"}
    exact = 1e-4 if dtype == "float32" else 1e-9
    for name in (*SHARED, *OWN):
        # Controls are those of a spectrum with the same traces: means to 3%, deviations to 20%. A z is a difference.
        near = 0.03 if name.startswith("nf_") else 1e-2 if name.startswith("nuclear_norm_ratio_") else exact
        near = 0.2 if name in ("nf_null_std", "nf_z") else near
        apart = 0.01 if name.endswith("_z") else exact
        np.testing.assert_allclose(by_products[name], from_frames[name], rtol=near, atol=apart, err_msg=name)
    np.testing.assert_allclose(by_products["control_reach"], from_frames["control_reach"], rtol=0.05)
    assert (np.asarray(by_products["polar_steps"]) > 0).all()
    assert (np.asarray(by_products["polar_residual"]) < 1e3 * np.finfo(dtype).eps).all()


def test_several_posts_and_each_two_of_them():
    base, post = pairs((32, 32), 2)
    posts = (post, base + 2 * (post - base), base[::-1].copy())
    measurement = Measurement(("polar",), by_products=True)
    with jax.enable_x64(True):
        found = measure_stack(base, posts, measurement=measurement, pairs=((0, 1), (1, 2)))
        alone = measure_stack(posts[1], (posts[2],), measurement=measurement).posts[0]
    for name in (*SHARED, *OWN):
        np.testing.assert_allclose(found.pairs[1][name], alone[name], rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.pairs[0]["change_cosine"], 1, rtol=1e-12)


def test_columns_stand_once():
    alone = columns(("polar",), by_products=True)
    assert [name for name in alone if name in (*SHARED, *OWN, *CERTIFICATE_COLUMNS)] == [
        *SHARED,
        *OWN,
        *CERTIFICATE_COLUMNS,
    ]
    together = columns(("rotation", "budget", "polar"))
    assert len(set(together)) == len(together)
    assert [name for name in together if name in OWN] == list(OWN)
    assert "budget_outside" in columns(("rotation", "polar")) and "coordination" not in columns(("rotation", "polar"))


@pytest.mark.parametrize(
    ("options", "by_products", "dtype"),
    [
        (Options(metrics="polar"), True, "float32"),
        (Options(metrics="polar", dtype="float64"), True, "float64"),
        (Options(metrics="polar,change"), False, "float64"),
        (Options(metrics="polar", method="gram"), False, "float64"),
        (Options(metrics="polar", control_draws=2), False, "float64"),
        (Options(), False, "float64"),
    ],
)
def test_products_are_for_the_group_alone_on_accelerators(options, by_products, dtype, on_an_accelerator):
    found = Measurement.parse(options)
    assert (found.by_products, found.dtype) == (by_products, dtype)


def test_on_cpu_it_is_read_from_frames():
    assert not Measurement.parse(Options(metrics="polar")).by_products


def run(folder, *more):
    command = ["compare", f"--base={folder}/base", f"--post={folder}/post", f"--out={folder}/run", "--metrics=polar"]
    return main([*command, "--noplots", "--compilation_cache=", "--overwrite", *more])


def test_from_the_command_line(checkpoints, on_an_accelerator, capsys):
    assert run(checkpoints) == 0
    printed = capsys.readouterr().out
    heading, _, *rows = printed[printed.index("role ") :].splitlines()[:4]
    headings = [word.strip() for word in heading.split("  ") if word.strip()]
    assert headings[2:] == ["nf", "control (law)", "symmetry", "control (counted)", "named"]
    assert all(len(row.split()) >= 6 for row in rows)
    assert "Layer 1's o: changed symmetrically in its own frame" in printed and "by symmetry" in printed
    found = polarax.Run.open(checkpoints / "run")
    frame = found.frame()
    assert (frame["status"] == "ok").all() and (frame["polar_steps"] > 0).all() and (frame["relation"] == "").all()
    assert frame[[*SHARED, *OWN]].notna().all(axis=None)
    with pytest.raises(KeyError, match="has no array 's_base'"):
        found.spectra(frame["name"][0])
    assert run(checkpoints, "--control_draws=2") == 0  # from frames
    assert {"nf_spectrum", "symmetry_isotropic_z"} <= set(polarax.Run.open(checkpoints / "run").frame())


def test_its_page(checkpoints, on_an_accelerator):
    from polarax.report.run_page import render_report

    assert run(checkpoints) == 0
    page = render_report(polarax.Run.open(checkpoints / "run"))
    assert '<figure id="nf">' in page
    for column in ("nf", "nf_null", "nf_excess", "symmetry", "polar_residual"):
        assert f'"key":"{column}"' in page


def test_where_coordination_was_measured_symmetry_is_only_a_column(checkpoints, capsys):
    assert run(checkpoints, "--metrics=change,rotation,budget,polar") == 0
    printed = capsys.readouterr().out
    assert "symmetry" not in printed and "coordination" in printed
    assert polarax.Run.open(checkpoints / "run").frame()["symmetry"].notna().all()


def test_several_posts_from_the_command_line(checkpoints, on_an_accelerator):
    posts = [checkpoints / "post", checkpoints / "base"]
    runs = polarax.compare(checkpoints / "base", posts, metrics="polar", progress=False)
    assert {"nf", "polar_residual"} <= set(runs.frame())
    assert set(runs.frame()["status"]) == {"ok", "unchanged"}
