"""Programs that are kept: found again by the same process and the next, and never when anything is another."""

import os
import pathlib
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import polarax
from polarax.measuring import program_cache
from polarax.measuring.program_cache import FOLDER, is_of_this_package, load_or_compile, shapes_of_kept

MATRIX = jax.ShapeDtypeStruct((5, 5), np.float32)


@jax.jit
def _values(x):
    return {"values": jnp.linalg.eigvalsh(x @ x.T), "sum": jnp.sum(x)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of JAX's cache, as for a process that has just started."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    monkeypatch.setattr(program_cache, "source_digest", lambda: "as it was")
    monkeypatch.setattr(program_cache, "MOST_IN_MEMORY", 0)
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def compiled(monkeypatch):
    """How many programs were traced, as a list that grows."""
    traced = []
    keep = program_cache._keep

    def counted(folder, name, program):
        traced.append(name)
        keep(folder, name, program)

    monkeypatch.setattr(program_cache, "_keep", counted)
    return traced


def _program(function=_values, matrix=MATRIX, **static):
    return load_or_compile(function, matrix, static=static)


def _files(cache):
    return sorted((cache / FOLDER).glob("*.program"))


def _check(program, size=5):
    x = np.diag(np.arange(1.0, size + 1)).astype(np.float32)
    result = program(x)
    np.testing.assert_allclose(result["values"], np.arange(1.0, size + 1) ** 2, rtol=1e-5)
    assert float(result["sum"]) == size * (size + 1) / 2


class TestKept:
    def test_a_program_is_compiled_once(self, cache, compiled):
        _check(_program())
        _check(_program())
        assert len(compiled) == 1
        assert [file.name for file in _files(cache)] == compiled

    def test_the_folder_and_the_file_are_private(self, cache):
        _program()
        assert (cache / FOLDER).stat().st_mode & 0o777 == 0o700
        assert all(file.stat().st_mode & 0o077 == 0 for file in _files(cache))

    def test_what_another_process_kept_is_loaded(self, cache, tmp_path):
        """With LAPACK's functions, which nothing was lowered with in the process that loads."""
        script = textwrap.dedent("""
            import sys, jax, jax.numpy as jnp, numpy as np
            from polarax.measuring import program_cache
            jax.config.update("jax_compilation_cache_dir", sys.argv[1])
            def refuse(*_):
                raise AssertionError("traced")
            def values(x):
                refuse() if sys.argv[2] == "loads" else None
                return jnp.linalg.eigh(x)
            shape = jax.ShapeDtypeStruct((3, 3), np.float32)
            program = program_cache.load_or_compile(jax.jit(values), shape, static={})
            print(np.asarray(program(np.diag([3, 1, 2]).astype(np.float32))[0]).tolist())
        """)
        for what in ("makes", "loads"):
            done = subprocess.run(
                [sys.executable, "-c", script, str(cache), what],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.stdout.strip() == "[1.0, 2.0, 3.0]", done.stderr

    def test_what_it_gives_is_known_without_tracing_or_loading_it(self, cache, monkeypatch):
        assert shapes_of_kept(_values, MATRIX, static={}) is None
        _program()
        monkeypatch.setattr(program_cache, "_load", None)
        assert shapes_of_kept(_values, MATRIX, static={}) == jax.eval_shape(_values, MATRIX)
        assert shapes_of_kept(_values, MATRIX, static={}, keep=False) is None

    def test_two_at_once(self, cache):
        with ThreadPoolExecutor(2) as pool:
            for program in pool.map(lambda _: _program(), range(2)):
                _check(program)
        assert len(_files(cache)) == 1

    def test_what_jax_has_in_its_own_cache_is_compiled_again(self, cache, tmp_path):
        """Serialised again, it would lack functions in the process that loads it."""
        _values.lower(MATRIX).compile()
        with program_cache._without_cache_of_jax(), program_cache._without_cache_of_jax():
            assert not jax.config.values["jax_enable_compilation_cache"]
        assert jax.config.values["jax_enable_compilation_cache"]
        _program()
        _check(_program())

    def test_no_file_is_kept_without_a_cache(self, cache, compiled):
        jax.config.update("jax_compilation_cache_dir", None)
        _check(_program())
        assert not compiled
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
        assert program_cache._folder() is None

    def test_what_is_made_of_more_than_the_package_is_not_kept(self, cache, compiled):
        _check(load_or_compile(_values, MATRIX, static={}, keep=False))
        assert not compiled
        assert is_of_this_package([load_or_compile])
        assert not is_of_this_package([load_or_compile, _values])
        assert not is_of_this_package([object()])


class TestInMemory:
    """The programs that were used last, for the next time in this process."""

    @pytest.fixture(autouse=True)
    def in_memory(self, cache, monkeypatch):
        monkeypatch.setattr(program_cache, "MOST_IN_MEMORY", 2)
        monkeypatch.setattr(program_cache, "_recent", program_cache._RecentPrograms())

    @pytest.fixture
    def made(self, monkeypatch):
        """Shapes of the matrices that programs were compiled for, as a list that grows."""
        found, compile_ = [], program_cache._compiled

        def counted(lowered, quickly):
            found.append(lowered.in_avals[0][0].shape[0])
            return compile_(lowered, quickly)

        monkeypatch.setattr(program_cache, "_compiled", counted)
        return found

    def of_size(self, size):
        return _program(matrix=jax.ShapeDtypeStruct((size, size), np.float32))

    @pytest.mark.parametrize("with_files", [True, False])
    def test_nothing_is_made_or_read_again(self, made, monkeypatch, with_files):
        if not with_files:
            jax.config.update("jax_compilation_cache_dir", None)
        first = _program()
        monkeypatch.setattr(program_cache, "_payload", None)
        assert _program() is first
        assert shapes_of_kept(_values, MATRIX, static={}) == jax.eval_shape(_values, MATRIX)
        assert made == [5]
        _check(first)

    def test_what_was_read_from_a_file_is_not_read_again(self, made, monkeypatch):
        _program()
        program_cache._recent.clear()
        read = _program()
        monkeypatch.setattr(program_cache, "_payload", None)
        assert _program() is read
        assert shapes_of_kept(_values, MATRIX, static={}) == jax.eval_shape(_values, MATRIX)
        assert made == [5]
        _check(read)

    def test_those_not_used_for_longest_go_first(self, made):
        jax.config.update("jax_compilation_cache_dir", None)
        for size in (3, 4, 3, 5, 3, 4):
            _check(self.of_size(size), size)
        assert made == [3, 4, 5, 4]

    def test_settings_tell_programs_apart(self, made):
        jax.config.update("jax_compilation_cache_dir", None)
        _program()
        with jax.default_matmul_precision("float32"):
            _program()
        with jax.enable_x64(True):
            _program()
        assert len(made) == 3

    def test_what_is_made_of_more_than_the_package_is_made_each_time(self, made):
        for _ in range(2):
            load_or_compile(_values, MATRIX, static={}, keep=False)
        assert len(made) == 2 and shapes_of_kept(_values, MATRIX, static={}) is None


class TestKeys:
    """Whatever the program depends on makes another key."""

    @pytest.mark.parametrize(
        "other",
        [
            jax.ShapeDtypeStruct((6, 6), np.float32),
            jax.ShapeDtypeStruct((5, 5), jnp.bfloat16),
            jax.ShapeDtypeStruct((5, 5), np.float16),
        ],
    )
    def test_shape_and_dtype(self, cache, other):
        _program()
        name = program_cache._name_of(_values, (other,), {})
        assert name is not None
        assert not (cache / FOLDER / name).exists()

    def test_static_arguments(self):
        names = {program_cache._name_of(_values, (MATRIX,), static) for static in ({}, {"k": 1}, {"k": 2}, {"k": "1"})}
        assert len(names) == 4

    def test_the_function(self):
        assert program_cache._name_of(_values, (MATRIX,), {}) != program_cache._name_of(jax.jit(_check), (MATRIX,), {})

    @pytest.mark.parametrize("what", ["source_digest", "versions", "_machine", "_settings"])
    def test_source_versions_machine_and_settings(self, cache, compiled, monkeypatch, what):
        _program()
        monkeypatch.setattr(program_cache, what, lambda: "another")
        _check(_program())
        assert len(set(compiled)) == 2

    def test_versions_are_those_of_what_compiles(self, monkeypatch):
        text = program_cache.versions()
        assert all(f"{name} {program_cache._version(name)}" in text for name in ("polarax", "jax", "jaxlib"))

    def test_settings_as_they_hold_here(self, monkeypatch):
        plain = program_cache._settings()
        with jax.enable_x64(True):
            assert program_cache._settings() != plain
        with jax.default_matmul_precision("highest"):
            assert program_cache._settings() != plain
        assert program_cache._settings() == plain
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert program_cache._settings() != plain

    def test_what_cannot_be_told_apart_is_not_kept(self, cache, compiled):
        assert program_cache._name_of(_values, (MATRIX,), {"read": object()}) is None

    def test_all_source_counts(self):
        files = {path.name for path in program_cache._modules(pathlib.Path(polarax.__path__[0]))}
        assert {"program.py", "rotation.py", "measurement.py"} <= files

    def test_source_that_was_changed_after_it_was_imported(self, monkeypatch):
        source = program_cache.source_digest.__wrapped__
        assert source()
        monkeypatch.setattr(program_cache, "_started", 0.0)
        assert source() is None


class TestHostileOrBroken:
    def _spoil(self, cache, content):
        (file,) = _files(cache)
        whole = file.read_bytes()
        file.write_bytes(content(whole))
        return file, whole

    @pytest.mark.parametrize(
        "content",
        [
            lambda whole: b"",
            lambda whole: whole[: len(whole) // 2],
            lambda whole: whole[:-1],
            lambda whole: whole + b"x",
            lambda whole: whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
            lambda whole: b"another format" + whole,
        ],
    )
    def test_a_broken_file_is_remade(self, cache, compiled, content):
        _program()
        file, whole = self._spoil(cache, content)
        _check(_program())
        assert len(compiled) == 2
        _check(_program())
        assert len(compiled) == 2
        assert len(file.read_bytes()) == pytest.approx(len(whole), rel=0.1)

    def test_a_pickle_of_something_else(self, cache, compiled):
        import hashlib
        import pickle

        _program()
        payload = pickle.dumps(("not", "a", "program"))
        self._spoil(cache, lambda _: program_cache._MAGIC + hashlib.sha256(payload).digest() + payload)
        assert shapes_of_kept(_values, MATRIX, static={}) is None
        _check(_program())
        assert len(compiled) == 2

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
    def test_a_folder_that_others_can_write_is_not_used(self, cache, compiled, mode):
        _program()
        (cache / FOLDER).chmod(mode)
        before = [file.read_bytes() for file in _files(cache)]
        _check(_program())
        assert len(compiled) == 2
        assert [file.read_bytes() for file in _files(cache)] == before

    def test_a_file_that_others_can_write_is_not_used(self, cache, compiled):
        _program()
        _files(cache)[0].chmod(0o666)
        _check(_program())
        assert len(compiled) == 2
        assert _files(cache)[0].stat().st_mode & 0o077 == 0

    def test_another_users_folder_is_not_used(self, cache, compiled, monkeypatch):
        _program()
        someone = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: someone)
        _check(_program())
        assert len(compiled) == 2

    def test_links_are_not_followed(self, cache, compiled, tmp_path):
        _program()
        (file,) = _files(cache)
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
        _check(_program())
        assert len(compiled) == 2
        (cache / FOLDER).rename(tmp_path / "folder")
        (cache / FOLDER).symlink_to(tmp_path / "folder")
        _check(_program())
        assert len(compiled) == 3

    def test_a_pipe_in_place_of_a_file(self, cache):
        _program()
        (file,) = _files(cache)
        file.unlink()
        os.mkfifo(file)
        _check(_program())

    def test_a_folder_that_cannot_be_made(self, cache, compiled):
        cache.write_text("a file")
        _check(_program())
        assert not compiled

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written(self, cache):
        (cache / FOLDER).mkdir(mode=0o500, parents=True)
        _check(_program())
        assert not _files(cache)

    def test_a_full_disk(self, cache, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        _check(_program())
        assert list((cache / FOLDER).iterdir()) == []


class TestIncomplete:
    """A program that was loaded and lacks a function, as XLA tells when it is called."""

    def test_it_is_made_again(self, cache, compiled, monkeypatch):
        _program()

        def incomplete(*_):
            raise jax.errors.JaxRuntimeError("NOT_FOUND: Function multiply_fusion not found (type id: 1)")

        kept = program_cache._Recent(incomplete, None)
        monkeypatch.setattr(program_cache, "_load", lambda *_: kept)
        program = _program()
        _check(program)
        _check(program)
        assert len(compiled) == 2

    def test_other_errors_are_told(self, cache, monkeypatch):
        def too_large(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        kept = program_cache._Recent(too_large, None)
        monkeypatch.setattr(program_cache, "_load", lambda *_: kept)
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
            _check(_program())


class TestRoom:
    def test_those_not_used_for_longest_go_first(self, cache, monkeypatch):
        names = []
        for index, size in enumerate((3, 4, 5)):
            _program(matrix=jax.ShapeDtypeStruct((size, size), np.float32))
            (new,) = {file.name for file in _files(cache)} - set(names)
            names.append(new)
            os.utime(cache / FOLDER / new, (index, index))
        _check(_program(matrix=jax.ShapeDtypeStruct((3, 3), np.float32)), 3)  # used again
        sizes = {file.name: file.stat().st_size for file in _files(cache)}
        monkeypatch.setattr(program_cache, "MOST_BYTES", sum(sizes.values()) - 1)
        program_cache._make_room(cache / FOLDER)
        assert {file.name for file in _files(cache)} == {names[0], names[2]}

    def test_what_was_abandoned_goes(self, cache):
        _program()
        old, new = (cache / FOLDER / f"{name}.partial" for name in ("old", "new"))
        old.touch()
        new.touch()
        os.utime(old, (0, 0))
        program_cache._make_room(cache / FOLDER)
        assert (old.exists(), new.exists()) == (False, True)


TRITON, EMITTERS, LEVEL = "xla_gpu_enable_triton_gemm", "xla_cpu_use_fusion_emitters", "xla_backend_optimization_level"


@pytest.mark.parametrize(
    ("backend", "quickly", "flags", "unknown", "expected"),
    [
        ("gpu", False, "", (), [{TRITON: False}]),
        ("gpu", True, "", (), [{TRITON: False}]),
        ("gpu", False, f"--{TRITON}=true", (), [None]),
        ("gpu", False, "", (TRITON,), [{TRITON: False}, None]),
        ("cpu", False, "", (), [{EMITTERS: False}]),
        ("cpu", True, "", (), [{EMITTERS: False, LEVEL: "0"}]),
        ("cpu", True, f"--{EMITTERS}=true", (), [{LEVEL: "0"}]),
        ("cpu", True, f"--{EMITTERS}=true --{LEVEL}=3", (), [None]),
        ("cpu", True, "", (EMITTERS,), [{EMITTERS: False, LEVEL: "0"}, {LEVEL: "0"}]),
        ("tpu", True, "", (), [None]),
    ],
)
def test_options_of_xla(backend, quickly, flags, unknown, expected, monkeypatch):
    """What takes XLA long and makes nothing faster is left out, where this XLA knows it and nobody asked for it."""
    asked, compile_ = [], jax.stages.Lowered.compile

    def compile_with(lowered, compiler_options=None):
        asked.append(compiler_options)
        for name in compiler_options or ():
            if name in unknown:
                raise jax.errors.JaxRuntimeError(f"INVALID_ARGUMENT: No such compile option: '{name}'")
        return compile_(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_with)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    program = load_or_compile(_values, MATRIX, static={}, keep=False, quickly=quickly)
    assert asked == expected
    assert program(np.eye(5, dtype=np.float32))["sum"] == 5


def test_what_this_xla_does_not_know_is_no_error(monkeypatch):
    monkeypatch.setattr(program_cache, "_FUSION_EMITTERS", "xla_cpu_gone_in_a_later_version")
    assert load_or_compile(_values, MATRIX, static={}, keep=False)(np.eye(5, dtype=np.float32))["sum"] == 5
