"""polarax.compare from end to end: what is compared, in what precision, and what a bad row says."""

import jax
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import threadpoolctl

import polarax
import polarax.comparison
import polarax.measuring.execution
import polarax.planning.request
from polarax.loaders import CheckpointError
from polarax.metrics import GROUPS, IDENTITY_COLUMNS, columns
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection
from polarax.results.arrays import read_array

LLAMA_ROLES = {"q", "k", "v", "o", "gate", "up", "down"}


def compare(base, post, **options):
    return polarax.compare(base, post, progress=False, **options)


def numbers(frame):
    return frame.drop(columns=[*IDENTITY_COLUMNS, "control"], errors="ignore")


def assert_same_rows(frame, other, *, rtol):
    """That two frames hold the same matrices with the same readings."""
    frame, other = frame.set_index("name"), other.set_index("name")
    assert set(frame.index) == set(other.index)
    # A column of counts holds floats where one of its rows has none.
    exactly = {"rtol": rtol} if rtol else {"check_exact": True}
    pd.testing.assert_frame_equal(frame, other.loc[frame.index], check_dtype=False, **exactly)


class TestWhatIsCompared:
    def test_seven_roles_in_every_layer_of_a_llama(self, llama, llama_run):
        frame = llama_run.frame()
        assert set(frame["name"]) == set(llama.matrices)
        for layer in range(3):
            assert set(frame["role"][frame["layer"] == layer]) == LLAMA_ROLES
        outside = frame[frame["layer"].isna()].set_index("name")["role"].to_dict()
        assert outside == {"model.embed_tokens.weight": "embed", "lm_head.weight": "head"}
        assert frame["expert"].isna().all()

    def test_shapes_and_dtypes_are_those_of_the_file(self, llama, llama_run):
        frame = llama_run.frame().set_index("name")
        for name, (base, _) in llama.matrices.items():
            assert (frame.loc[name, "rows"], frame.loc[name, "cols"]) == base.shape
        assert set(frame["dtype_base"]) == set(frame["dtype_post"]) == {"bfloat16"}
        assert set(frame["status"]) == {"ok"}

    def test_vectors_are_skipped_with_the_reason(self, llama, llama_run):
        skipped = llama_run.skipped().set_index("name")["reason"].to_dict()
        assert set(skipped) == set(llama.vectors)
        assert all("1-D" in reason for reason in skipped.values())

    def test_a_selection_keeps_just_that_and_names_the_rest(self, llama):
        run = compare(
            llama.base,
            llama.post,
            metrics="change",
            include=[r"_proj\.weight$", "embed"],
            exclude="mlp",
            roles="q,o,down,embed",
            layers="0,2-5",
        )
        wanted = {f"model.layers.{layer}.self_attn.{w}_proj.weight" for layer in (0, 2) for w in "qo"}
        assert set(run.frame()["name"]) == wanted
        left_out = set(run.skipped()["name"]) - set(llama.vectors)
        assert left_out == set(llama.matrices) - wanted
        assert list(run.description["flags"].items())[:4] == [
            ("include", [r"_proj\.weight$", "embed"]),
            ("exclude", ["mlp"]),
            ("roles", ["embed", "q", "o", "down"]),
            ("layers", ["0-0", "2-5"]),
        ]

    @pytest.mark.parametrize("groups", [*([group] for group in GROUPS), ["scaling", "budget"]])
    def test_a_metric_group_gives_its_columns_with_the_same_values(self, llama, llama_run, groups):
        run = compare(llama.base, llama.post, metrics=",".join(groups), layers="0", roles="k")
        frame = run.frame()
        assert list(frame.columns) == list(columns(groups, own_spectrum="shape" in groups))
        everything = llama_run.frame()
        same = everything[(everything["layer"] == 0) & (everything["role"] == "k")]
        # Without the group "change" nothing is known of rounding.
        known = [column for column in frame.columns if column != "rank_change" or "change" in groups]
        assert_same_rows(frame[known], same[known].reset_index(drop=True), rtol=1e-9)

    def test_metrics_come_in_catalogue_order_whatever_the_order_given(self, small):
        run = compare(small.base, small.post, metrics=["scaling", "change"])
        assert list(run.frame().columns).index("drift") < list(run.frame().columns).index("alpha")


class TestParameterTrees:
    def test_nested_dicts_of_numpy_arrays_give_what_the_files_give(self, small):
        from_files = compare(small.base, small.post, metrics="rotation")
        trees = _nested(small.base_arrays), _nested(small.post_arrays)
        run = compare(*trees, metrics="rotation")
        assert_same_rows(run.frame(), from_files.frame(), rtol=0)
        assert run.description["base"]["fingerprint"] == from_files.description["base"]["fingerprint"]

    def test_a_flax_nnx_module_and_its_state_are_read_with_kernels_transposed(self):
        from flax import nnx

        class Block(nnx.Module):
            def __init__(self, seed):
                self.q_proj = nnx.Linear(8, 12, rngs=nnx.Rngs(seed))

        base, post = Block(0), Block(0)
        kernel = np.asarray(base.q_proj.kernel[...])
        noise = np.random.default_rng(1).normal(size=kernel.shape)
        post.q_proj.kernel[...] = jax.numpy.asarray(1.5 * kernel + 0.01 * noise, np.float32)
        changed = np.asarray(post.q_proj.kernel[...])
        run = compare(base, nnx.state(post), metrics="budget")
        row = run.frame().set_index("name").loc["q_proj.kernel"]
        assert (row["rows"], row["cols"]) == (12, 8)  # a kernel is (in, out)
        # outside the base's column space there is something; outside its row space there cannot be
        u, s, vt = np.linalg.svd(kernel.T.astype(np.float64), full_matrices=False)
        change = changed.T.astype(np.float64) - kernel.T.astype(np.float64)
        projected = u @ (u.T @ change)
        outside = np.sum((change - projected) ** 2) / np.sum(change**2)
        assert row["budget_outside"] == pytest.approx(outside, rel=1e-9)
        np.testing.assert_allclose(run.spectra("q_proj.kernel")[0], s, rtol=1e-9)
        values_post = np.linalg.svd(changed.astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(run.spectra("q_proj.kernel")[1], values_post, rtol=1e-9)
        reasons = run.skipped().set_index("name")["reason"]
        assert "1-D" in reasons["q_proj.bias"]

    def test_a_run_in_a_temporary_folder_goes_with_the_last_reference(self, small):
        run = compare(small.base, small.post, metrics="change")
        path = run.path
        assert path.is_dir()
        del run
        assert not path.exists()


class TestPrecision:
    def test_base_and_post_of_different_dtypes(self, tmp_path, write):
        rng = np.random.default_rng(2)
        base = rng.normal(size=(12, 8)).astype(ml_dtypes.bfloat16)
        post = base.astype(np.float32)
        post[:3] += rng.normal(size=(3, 8)).astype(np.float32) / 8
        run = compare(
            write(tmp_path / "base.safetensors", {"q": base}),
            write(tmp_path / "post.safetensors", {"q": post}),
            metrics="change,scaling",
        )
        row = run.frame().iloc[0]
        assert (row["dtype_base"], row["dtype_post"]) == ("bfloat16", "float32")
        assert row["unchanged"] == 0.75  # by value, since the bits cannot be compared
        change = post.astype(np.float64) - base.astype(np.float64)
        base = base.astype(np.float64)
        assert row["drift"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(base), rel=1e-12)
        s_base = np.linalg.svd(base, compute_uv=False)
        s_post = np.linalg.svd(post.astype(np.float64), compute_uv=False)
        assert row["alpha"] == pytest.approx(s_base @ s_post / (s_base @ s_base), rel=1e-12)

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
    def test_every_floating_dtype_is_read_as_it_is(self, tmp_path, write, dtype):
        rng = np.random.default_rng(3)
        kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
        base = rng.normal(size=(12, 8)).astype(kind)
        post = (base.astype(np.float64) + 0.3 * rng.normal(size=(12, 8))).astype(kind)
        run = compare(
            write(tmp_path / "base.safetensors", {"q": base}),
            write(tmp_path / "post.safetensors", {"q": post}),
            metrics="change",
        )
        row = run.frame().iloc[0]
        assert row["dtype_base"] == row["dtype_post"] == dtype
        assert row["status"] == "ok"
        bits = f"u{kind.itemsize}"
        assert row["unchanged"] == pytest.approx(np.mean(base.view(bits) == post.view(bits)))
        for found, stored in zip(run.spectra("q"), (base, post), strict=True):
            values = np.linalg.svd(stored.astype(np.float64), compute_uv=False)
            np.testing.assert_allclose(found, values, rtol=1e-12)
        bits_of_fraction = ml_dtypes.finfo(kind).nmant
        half_ulp = 2.0 ** (-bits_of_fraction - 1)  # relative to the power of two below
        change = np.linalg.norm(post.astype(np.float64) - base.astype(np.float64))
        # an error uniform in +-half a unit: its size is half_ulp / sqrt(3) of the power of two below
        largest = half_ulp / np.sqrt(3) * np.linalg.norm(post.astype(np.float64)) / change
        assert largest / 2 < row["rounding_share"] < largest * 1.2

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_bits_of_float64_weights_count_in_any_working_precision(self, tmp_path, write, dtype):
        base = np.random.default_rng(4).normal(size=(12, 8))
        post = base.copy()
        post[:9] *= 1 + 1e-13  # lost in float32
        run = compare(
            write(tmp_path / "base.safetensors", {"q": base}),
            write(tmp_path / "post.safetensors", {"q": post}),
            metrics="change",
            dtype=dtype,
        )
        assert run.frame()["unchanged"][0] == 0.25

    def test_float64_weights_keep_their_precision(self, tmp_path, write):
        rng = np.random.default_rng(4)
        base = rng.normal(size=(12, 8))
        post = base + 1e-11 * rng.normal(size=(12, 8))
        run = compare(
            write(tmp_path / "base.safetensors", {"q": base}),
            write(tmp_path / "post.safetensors", {"q": post}),
            metrics="change,rotation",
        )
        row = run.frame().iloc[0]
        drift = np.linalg.norm(post - base) / np.linalg.norm(base)
        assert row["drift"] == pytest.approx(drift, rel=1e-12)
        # first order: nf = ||O|| / sqrt(r), O_ij = (E_ij - E_ji) / (s_i + s_j)
        u, s, vt = np.linalg.svd(base, full_matrices=False)
        e = u.T @ (post - base) @ vt.T
        first_order = np.linalg.norm((e - e.T) / np.add.outer(s, s)) / np.sqrt(8)
        assert row["nf"] == pytest.approx(first_order, rel=1e-3)

    def test_the_global_x64_flag_is_left_alone(self, small):
        before = jax.config.jax_enable_x64
        for dtype in ("float64", "float32"):
            compare(small.base, small.post, metrics="change", dtype=dtype)
            assert jax.config.jax_enable_x64 == before
        assert jax.numpy.ones(1, float).dtype == np.float32

    def test_the_global_x64_flag_is_left_alone_when_a_run_fails(self, small, monkeypatch):
        def fail(*_):
            raise RuntimeError("simulated")

        monkeypatch.setattr(polarax.measuring.outputs, "make_row", fail)
        with pytest.raises(RuntimeError, match="simulated"):
            compare(small.base, small.post, metrics="change")
        assert not jax.config.jax_enable_x64

    def test_a_program_that_has_enabled_x64_gets_the_same_numbers(self, small):
        expected = compare(small.base, small.post, metrics="rotation").frame()
        with jax.enable_x64(True):
            run = compare(small.base, small.post, metrics="rotation")
            assert_same_rows(run.frame(), expected, rtol=1e-12)
            assert jax.config.jax_enable_x64


class TestRowsThatSayLittle:
    @pytest.fixture
    def arrays(self):
        rng = np.random.default_rng(6)
        base = {f"layers.{i}.self_attn.q_proj": rng.normal(size=(12, 8)) for i in range(6)}
        post = {name: w + 0.01 * rng.normal(size=w.shape) for name, w in base.items()}
        return base, post

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("side", ["base", "post"])
    def test_nan_and_inf_get_a_status_and_touch_no_other_row(self, arrays, side, value):
        clean = compare(*arrays).frame()
        name = "layers.2.self_attn.q_proj"
        broken = arrays[side == "post"]
        broken[name] = broken[name].copy()
        broken[name][3, 4] = broken[name][0, 0] = value
        frame = compare(*arrays).frame()
        row = frame.set_index("name").loc[name]
        assert row["status"] == f"not finite: 2 in {side}"
        assert np.isnan(row["alpha"]) and np.isnan(row["nf"]) and np.isnan(row["coordination"])
        others = frame["name"] != name
        assert_same_rows(frame[others], clean[others], rtol=0)  # to the last bit
        assert set(frame["status"][others]) == {"ok"}

    @pytest.mark.parametrize(("side", "place"), [("base", 0), ("post", 1)])
    def test_a_zero_matrix_gets_a_status_and_touches_no_other_row(self, arrays, side, place):
        clean = compare(*arrays).frame()
        name = "layers.2.self_attn.q_proj"
        arrays[place][name] = np.zeros((12, 8))
        run = compare(*arrays)
        frame = run.frame()
        row = frame.set_index("name").loc[name]
        assert row["status"] == f"zero {side}"
        assert np.isnan(row["nf"])
        others = frame["name"] != name
        assert_same_rows(frame[others], clean[others], rtol=0)
        described = run.summary()["roles"]["q"]
        for metric, values in described.items():
            if isinstance(values, dict) and values["count"]:
                assert np.isfinite(values["mean"]), metric

    def test_a_matrix_that_did_not_change(self, arrays):
        base, post = arrays
        name = "layers.2.self_attn.q_proj"
        row = compare(base, post | {name: base[name]}).frame().set_index("name").loc[name]
        assert row["status"] == "unchanged"
        assert row["drift"] == 0 and row["unchanged"] == 1 and row["alpha"] == pytest.approx(1)
        assert row["nf"] == pytest.approx(0, abs=1e-12)
        assert np.isnan(row["budget_scaling"]) and np.isnan(row["coordination"])

    @pytest.mark.parametrize(("side", "place"), [("base", 0), ("post", 1)])
    def test_a_rank_deficient_matrix(self, arrays, side, place):
        name = "layers.2.self_attn.q_proj"
        low = arrays[place][name].copy()
        low[:, 5:] = low[:, :3]
        arrays[place][name] = low
        row = compare(*arrays).frame().set_index("name").loc[name]
        assert row["status"] == f"rank 5 of 8 in {side}"
        assert row[f"rank_{side}"] == 5

    @pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
    def test_a_matrix_of_one_row_or_column(self, shape):
        base = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
        post = 1.5 * base
        groups = None if shape == (1, 6) else ["change", "scaling", "rotation", "budget"]
        run = compare({"q": base}, {"q": post}, metrics=groups)
        row = run.frame().iloc[0]
        assert row["status"] == "ok"
        assert row["alpha"] == pytest.approx(1.5)
        assert row["nf"] == pytest.approx(0, abs=1e-7)
        assert row["budget_scaling"] == pytest.approx(1)
        assert row["drift"] == pytest.approx(0.5)
        assert np.isnan(row["coordination"])  # nothing can rotate
        np.testing.assert_allclose(run.spectra("q")[0], [np.linalg.norm(base)])
        assert run.summary()["matrices"] == 1

    def test_a_shape_mismatch_is_a_row_of_skipped(self, arrays):
        base, post = arrays
        name = "layers.2.self_attn.q_proj"
        run = compare(base, post | {name: np.ones((5, 8))}, metrics="change")
        assert len(run.frame()) == 5
        reasons = run.skipped().set_index("name")["reason"].to_dict()
        assert list(reasons) == [name]
        assert "(12, 8)" in reasons[name] and "(5, 8)" in reasons[name]

    def test_what_only_one_side_has_is_a_row_of_skipped(self, arrays):
        base, post = arrays
        run = compare(
            base | {"old": np.ones((2, 2))},
            post | {"new": np.ones((2, 2)), "empty": np.ones((0, 3))},
            metrics="change",
        )
        reasons = run.skipped().set_index("name")["reason"].to_dict()
        assert reasons == {"old": "only in base", "new": "only in post", "empty": "empty"}

    def test_a_name_that_no_table_knows_is_analysed_as_other(self):
        base = {"blocks.0.mixer": np.eye(12, 8)}
        frame = compare(base, {"blocks.0.mixer": 1.25 * np.eye(12, 8)}, metrics="change,scaling").frame()
        assert frame["role"][0] == "other" and frame["ratio_mean"][0] == pytest.approx(1.25)


class TestNames:
    def test_a_table_of_the_users_own(self):
        w = np.random.default_rng(0).normal(size=(2, 12, 8))
        table = {r"blocks\.(?P<layer>\d+)\.mixer": "o", "bank": {"role": "down", "axes": "E i o"}}
        run = compare({"blocks.3.mixer": w[0], "bank": w}, {"blocks.3.mixer": 2 * w[0], "bank": 2 * w}, role_map=table)
        frame = run.frame().set_index("name")
        assert frame["role"].to_dict() == {"bank[expert=0]": "down", "bank[expert=1]": "down", "blocks.3.mixer": "o"}
        assert frame.loc["blocks.3.mixer", "layer"] == 3
        assert frame.loc["bank[expert=1]", ["rows", "cols", "expert"]].tolist() == [8, 12, 1]
        np.testing.assert_allclose(run.spectra("bank[expert=1]")[1], 2 * np.linalg.svd(w[1], compute_uv=False))
        described = run.description["flags"]["role_map"]
        assert [line[:2] for line in described] == [[r"blocks\.(?P<layer>\d+)\.mixer", "o"], ["bank", "down"]]

    def test_vocabularies_on_their_common_rows(self):
        w = np.random.default_rng(1).normal(size=(9, 4))
        base, post = {"model.embed_tokens.weight": w[:7]}, {"model.embed_tokens.weight": 1.5 * w}
        run = compare(base, post, common_rows=True)
        row = run.frame().iloc[0]
        assert (row["role"], row["rows"]) == ("embed", 7)
        np.testing.assert_allclose(row["alpha"], 1.5)
        with pytest.raises(polarax.UsageError, match="shapes differ"):
            compare(base, post)


class TestStacks:
    def test_left_and_right_are_those_of_the_stored_matrix_in_a_stack_of_tall_and_wide(self):
        rng = np.random.default_rng(0)
        u, s, vt = np.linalg.svd(rng.normal(size=(12, 8)), full_matrices=False)
        turned = np.linalg.qr(u + 0.2 * rng.normal(size=u.shape))[0] * np.sign(np.diag(u.T @ u))
        tall, turned_left = u * s @ vt, turned * s @ vt
        frame = compare({"tall": tall, "wide": tall.T}, {"tall": turned_left, "wide": turned_left.T}, top_k=3)
        frame = frame.frame().set_index("name")
        overlap = np.linalg.norm(u[:, :3].T @ turned[:, :3]) ** 2 / 3
        assert overlap < 0.95
        np.testing.assert_allclose(frame.loc["tall", ["overlap_left", "overlap_right"]].astype(float), [overlap, 1])
        np.testing.assert_allclose(frame.loc["wide", ["overlap_left", "overlap_right"]].astype(float), [1, overlap])
        assert list(frame["rows"]) == [12, 8]

    def test_angles_of_a_wide_matrix_are_kept_on_its_own_sides(self):
        rng = np.random.default_rng(1)
        base = rng.normal(size=(8, 12))
        post = base + 0.3 * rng.normal(size=base.shape)
        run = compare({"w": base}, {"w": post}, top_k=3)
        sides = [np.linalg.svd(x, full_matrices=False) for x in (base, post)]
        for kind, vectors in (
            ("cosines_left", [u[:, :3] for u, _, _ in sides]),
            ("cosines_right", [vt[:3].T for *_, vt in sides]),
        ):
            expected = np.linalg.svd(vectors[0].T @ vectors[1], compute_uv=False)
            np.testing.assert_allclose(run.array("w", kind), expected, rtol=1e-9)

    def test_one_compilation_for_each_shape_and_dtype(self, monkeypatch):
        rng = np.random.default_rng(7)
        base = {f"a.{i}": rng.normal(size=(6, 5)).astype(np.float32) for i in range(33)}
        base |= {f"b.{i}": rng.normal(size=(5, 6)).astype(np.float32) for i in range(3)}
        base |= {"c.0": rng.normal(size=(6, 5))}
        post = {name: (1.1 * w).astype(w.dtype) for name, w in base.items()}
        compiled = _count_compilations(monkeypatch)
        monkeypatch.setattr(polarax.planning.request, "most_lanes", lambda: 1)
        run = compare(base, post, metrics="change")
        assert len(run.frame()) == 37
        stacks = [path.name for path in (run.path / "arrays").iterdir()]
        assert len(stacks) == 3  # 36 of one shape, wide ones among them, take two
        assert sorted(compiled) == [((1, 6, 5), "float32"), ((1, 6, 5), "float64")]

    @pytest.mark.parametrize("lanes", [2, 3, 8])
    def test_lanes_run_one_program_side_by_side_and_change_no_number(self, monkeypatch, lanes):
        rng = np.random.default_rng(8)
        base = {f"a.{i}": rng.normal(size=(12, 8)).astype(np.float32) for i in range(3)}
        base |= {"b.0": rng.normal(size=(8, 9)).astype(np.float32)}
        post = {name: w + 0.1 * rng.normal(size=w.shape).astype(np.float32) for name, w in base.items()}
        monkeypatch.setattr(polarax.planning.request, "most_lanes", lambda: 1)
        alone = compare(base, post).frame()
        monkeypatch.setattr(polarax.planning.request, "most_lanes", lambda: lanes)
        compiled = _count_compilations(monkeypatch)
        blas = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
        run = compare(base, post)
        assert [library["num_threads"] for library in threadpoolctl.threadpool_info()] == blas
        assert [shape[0] for shape, _ in compiled] == [1, 1]
        assert_same_rows(run.frame(), alone, rtol=1e-9)
        for name, w in base.items():
            expected = np.linalg.svd(w.astype(np.float64), compute_uv=False)
            np.testing.assert_allclose(run.spectra(name)[0], expected, rtol=1e-6)

    def test_the_padding_of_a_short_last_stack_is_invisible(self, monkeypatch, llama, llama_run):
        # Nine matrices of 96 x 48 or so, in stacks of two: the last one is half empty.
        names = [name for name, (w, _) in llama.matrices.items() if w.shape == (48, 48)][:5]
        one = 4 * 48 * 48
        # The work arrays, one pair besides, two in each of two stacks; a third is for programs.
        memory = (27 * 8 * 48 * 48 + one + 2 * 2 * one) * 3 // 2 + 1
        seen = _spy_on_stacks(monkeypatch)
        include = [f"^{name}$" for name in names]
        memory = {"memory_gib": memory / 2**30}
        run = compare(llama.base, llama.post, include=include, metrics="overlap", **memory)
        assert [(len(stack.pairs), stack.size) for stack in seen] == [(2, 2), (2, 2), (1, 2)]
        everything = llama_run.frame()
        same = everything[everything["name"].isin(names)].reset_index(drop=True)
        assert_same_rows(run.frame(), same[list(run.frame().columns)], rtol=1e-9)
        assert len(run.frame()) == 5
        stored = [read_array(run.path / "arrays" / stack.label / "s_base") for stack in seen]
        assert [values.shape for values in stored] == [(2, 48), (2, 48), (1, 48)]
        for name in names:
            np.testing.assert_allclose(run.spectra(name), llama_run.spectra(name), rtol=1e-9, atol=1e-12)

    def test_rows_are_in_model_order_whatever_the_order_of_the_stacks(self, llama, llama_run):
        base, post = (polarax.open_checkpoint(path) for path in (llama.base, llama.post))
        plan = plan_posts(base, {"": post}, Selection(), memory_bytes=2**30)
        in_stacks = [pair.name for stack in plan.stacks for pair in stack.pairs]
        assert list(llama_run.frame()["name"]) == list(plan.names) != in_stacks


@pytest.mark.parametrize("method", ["auto", "lapack"])
def test_entries_beyond_the_working_precision_are_not_finite_even_where_nothing_changed(method):
    huge = np.full((12, 8), 1e300)
    frame = compare({"w": huge}, {"w": huge.copy()}, dtype="float32", method=method, metrics="change,rotation").frame()
    assert list(frame["status"]) == ["not finite: 96 in base"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"metrics": "speed"}, "Unknown metric 'speed'"),
            ({"dtype": "bfloat16"}, "Unknown dtype 'bfloat16'"),
            ({"top_k": 0}, "top_k must be at least 1. Got 0"),
            ({"method": "magic"}, "Unknown method 'magic'"),
            ({"memory_gib": 0}, "memory_gib must be positive"),
            ({"memory_gib": float("nan")}, "memory_gib must be"),
            ({"memory_gib": float("inf")}, "memory_gib must be"),
            ({"roles": "query"}, "Unknown role 'query'"),
            ({"layers": "9"}, "leaves no matrix of 2"),
        ],
    )
    def test_what_cannot_be_met_is_said_before_anything_is_written(self, small, tmp_path, options, message):
        out = tmp_path / "run"
        with pytest.raises(polarax.UsageError, match=message):
            compare(small.base, small.post, out=out, **options)
        assert not out.exists()

    def test_nothing_in_common(self, small):
        with pytest.raises(CheckpointError, match="no tensor in common"):
            compare(small.base, {"unheard.of": np.eye(3)})

    def test_nothing_that_can_be_compared(self):
        with pytest.raises(polarax.UsageError, match=r"No matrix can be compared.*shapes differ"):
            compare({"q": np.eye(3)}, {"q": np.eye(4)})

    def test_an_array_that_goes_while_the_run_is_under_way_is_a_run_error(self, monkeypatch):
        base = {"a": jax.numpy.ones((12, 8)), "b": jax.numpy.ones((9, 8))}
        post = {name: 2 * w for name, w in base.items()}
        write_stack = polarax.comparison.RunWriter.write_stack
        # Stack 1 is read ahead while stack 0 is computed, so a third one is needed.
        base["c"] = post["c"] = jax.numpy.ones((8, 8))

        def delete_afterwards(self, *args):
            write_stack(self, *args)
            if not base["c"].is_deleted():
                base["c"].delete()

        monkeypatch.setattr(polarax.comparison.RunWriter, "write_stack", delete_afterwards)
        with pytest.raises(polarax.RunError, match=r"part-way.*'c'"):
            compare(base, post, metrics="change")


def _nested(arrays):
    tree = {}
    for name, array in arrays.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def _count_compilations(monkeypatch):
    """The shape and dtype of every stack that programs are compiled for: one of these reads stored entries."""
    compiled = []
    real = polarax.measuring.compiled_parts.load_or_compile

    def counted(function, operands, *stacks, static, **how):
        if static["part"] == "read_stored":
            compiled.append((stacks[0].shape, stacks[0].dtype.name))
        return real(function, operands, *stacks, static=static, **how)

    monkeypatch.setattr(polarax.measuring.compiled_parts, "load_or_compile", counted)
    return compiled


def _spy_on_stacks(monkeypatch):
    seen = []
    write_stack = polarax.comparison.RunWriter.write_stack

    def spy(self, stack, *args):
        seen.append(stack)
        write_stack(self, stack, *args)

    monkeypatch.setattr(polarax.comparison.RunWriter, "write_stack", spy)
    return seen
