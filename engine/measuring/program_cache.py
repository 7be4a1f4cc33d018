"""Compiled programs kept for the next comparison in this process and for the next process, which trace nothing again.

JAX's own cache of compilations (`jax_compilation_cache_dir`) is keyed by the program, which has to be traced and
lowered before it can be looked up: most of what is left of a start with a warm cache. Here the executable is looked up
by what the program is made from: its arguments, this package's source, the versions, the settings and the machine.

An executable is code, and so is what describes it (a pickle), so it is taken from one place alone: a folder within that
of JAX's cache which belongs to this user and which nobody else can write. A file that is torn, broken or another
version's is remade, and a folder that cannot be used costs nothing but time. Those used last stay in memory as well,
with or without such a folder: loading one takes a fifth of a second.
"""

import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import io
import os
import pathlib
import pickle
import platform
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import polarax.kernels
from polarax.planning.devices import cores

FOLDER = "polarax-programs"  # within the folder of JAX's cache
MOST_BYTES = 1 << 29  # of all files: some hundred programs; those not used for longest go first
MOST_IN_MEMORY = 64  # programs, likewise: as many as a model of eight shapes has

_ENDING = ".program"
_PARTIAL = ".partial"
_MAGIC = b"polarax program 2\n"
_DIGEST = hashlib.sha256().digest_size
_ABANDONED = 3600  # seconds after which a file that is still partial has no writer any more
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

# Options of XLA.
_TRITON = "xla_gpu_enable_triton_gemm"
_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
_OPTIMIZATION = "xla_backend_optimization_level"

# Settings that no program is made of: where it is kept, and what is done when another process ends.
_NO_MATTER = ("cache", "recoverability", "preemption_service")

_started = time.time()
_switching, _without_cache = threading.Lock(), 0


def load_or_compile(
    function: Any, *arguments: Any, static: Mapping[str, Any], keep: bool = True, quickly: bool = False
) -> "jax.stages.Compiled | _Loaded":
    """`function.lower(*arguments, **static).compile()`, from what an earlier process kept where there is such a thing.

    Args:
        function: What `jax.jit` returned, of a function of this package.
        *arguments: Pytrees of `jax.ShapeDtypeStruct`.
        static: Keyword arguments the program is compiled for; their `repr` has to tell them apart, in any process.
        keep: False where the program is made of more than this package and the arguments: of what a user registered.
        quickly: True for a program that hardly takes time to run: on CPUs it is compiled with less care.

    Returns:
        The program, to be called with arrays. With several devices in this process it is always compiled.
    """
    name = _name_of(function, arguments, static) if keep else None
    if name is None:
        return _compiled(function.lower(*arguments, **static), quickly)
    recent = _recent.get(name)
    if recent is not None:
        return recent.program
    folder = _folder()

    def make():
        with jax.enable_x64(x64):  # as it is here, whichever thread makes it
            lowered = function.lower(*arguments, **static)
            if folder is None:
                return _compiled(lowered, quickly)
            with _without_cache_of_jax():
                program = _compiled(lowered, quickly)
        _keep(folder, name, program)
        return program

    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    loaded = None if folder is None else _load(folder, name)
    if loaded is not None:
        return _recent.put(name, _Recent(_Loaded(loaded.program, make), loaded.shapes)).program
    program = make()
    return _recent.put(name, _Recent(program, _shapes_of(program))).program


def shapes_of_kept(function: Any, *arguments: Any, static: Mapping[str, Any], keep: bool = True) -> Any | None:
    """What a program gives that was kept, as `jax.ShapeDtypeStruct`; None if none was.

    Nothing is traced, and the program itself is not loaded. Arguments as for `load_or_compile`.
    """
    name = _name_of(function, arguments, static) if keep else None
    if name is None:
        return None
    recent = _recent.get(name)
    if recent is not None:
        return recent.shapes
    folder = _folder()
    payload = None if folder is None else _payload(folder, name)
    if payload is None:
        return None
    try:
        return _shapes_in(payload)
    except Exception:  # as in `_load`
        return None


class _Recent(NamedTuple):
    """A program, and what it gives as `jax.ShapeDtypeStruct`."""

    program: Any
    shapes: Any


class _RecentPrograms:
    """The programs that were used last, by their names."""

    def __init__(self):
        self._programs: collections.OrderedDict[str, _Recent] = collections.OrderedDict()
        self._changing = threading.Lock()

    def get(self, name: str) -> _Recent | None:
        """The program of that name, if it is there."""
        with self._changing:
            found = self._programs.get(name)
            if found is not None:
                self._programs.move_to_end(name)
            return found

    def put(self, name: str, recent: _Recent) -> _Recent:
        """Keeps a program; returns the one that is kept, which may be another thread's."""
        with self._changing:
            recent = self._programs.setdefault(name, recent)
            while len(self._programs) > MOST_IN_MEMORY:
                self._programs.popitem(last=False)
            return recent

    def clear(self) -> None:
        """Forgets all."""
        with self._changing:
            self._programs.clear()


_recent = _RecentPrograms()


class _Loaded:
    """A program that was loaded; made again if it proves to be incomplete, which XLA tells when it is called.

    Args:
        program: As it was loaded.
        make: Makes it again.
    """

    def __init__(self, program: jax.stages.Compiled, make: Callable[[], jax.stages.Compiled]):
        self._program, self._make, self._making = program, make, threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        program = self._program
        try:
            return jax.block_until_ready(program(*arguments))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):  # out of memory, say
                raise
        with self._making:
            if self._program is program:
                self._program = self._make()
        return self._program(*arguments)


def _compiled(lowered: jax.stages.Lowered, quickly: bool) -> jax.stages.Compiled:
    """Compiled, by what takes XLA least time for programs that run as fast, unless XLA_FLAGS has a say in that.

    On GPUs without Triton's products: XLA tries dozens of these for every product, and a program takes 29 s to compile
    with them on an H200, 6 s without. On CPUs without the emitters of fusions that JAX 0.10 has by default: they take
    1.5 times as long, and 3 times where little is optimised (docs/benchmarks.md); JAX 0.12 has no others. What is to be
    compiled quickly takes a quarter of the time on CPUs, and a few times as long to run.
    """
    options: dict[str, str | bool] = {}
    if jax.default_backend() == "gpu":
        options[_TRITON] = False
    if jax.default_backend() == "cpu":
        options[_FUSION_EMITTERS] = False
        if quickly:
            options[_OPTIMIZATION] = "0"
    options = {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}
    while True:
        try:
            return lowered.compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if f"No such compile option: '{name}'" in str(error)]
            if not unknown:
                raise
            options = {name: value for name, value in options.items() if name not in unknown}


@contextlib.contextmanager
def _without_cache_of_jax() -> Iterator[None]:
    """Has JAX compile: on CPU what it takes from its own cache lacks functions when it is serialised again."""
    _switch_cache_of_jax(1)
    try:
        yield
    finally:
        _switch_cache_of_jax(-1)


def _switch_cache_of_jax(more: int) -> None:
    """Off while any thread wants it off."""
    global _without_cache
    with _switching:
        before, _without_cache = _without_cache, _without_cache + more
        if 0 in (before, _without_cache):
            jax.config.update("jax_enable_compilation_cache", _without_cache == 0)
            compilation_cache.reset_cache()  # whether it is on is looked up once, and forgotten here


def is_of_this_package(functions: Iterable[Any]) -> bool:
    """Whether functions, or objects by their class, are this package's own: its source says what they do."""
    modules = (getattr(one, "__module__", None) or "" for one in functions)
    return all(module.startswith("polarax.") for module in modules)


def _folder() -> pathlib.Path | None:
    """Where programs are kept; made if it is not there. None if there is no such place."""
    cache = jax.config.values.get("jax_compilation_cache_dir")
    if not cache or "://" in cache or not (_without_cache or jax.config.values.get("jax_enable_compilation_cache")):
        return None
    folder = pathlib.Path(cache) / FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
    return None


# What a program is looked up by.


def _name_of(function: Any, arguments: Any, static: Mapping[str, Any]) -> str | None:
    """A program's name, its file's too; None if it cannot be told from others.

    That is so where the source may not be what is running, and with several devices.
    """
    if jax.local_device_count() != 1:
        return None
    leaves, tree = jax.tree.flatten(arguments)
    called = getattr(function, "__qualname__", None)
    if called is None:  # something else that can be lowered
        return None
    described = [
        f"{function.__module__}.{called}",
        str(tree),
        *(f"{leaf.shape} {np.dtype(leaf.dtype).name} {leaf.sharding} {leaf.weak_type}" for leaf in leaves),
        *(f"{name}={value!r}" for name, value in sorted(static.items())),
    ]
    source = source_digest()
    if source is None or any(" at 0x" in line for line in described):
        return None
    everything = "\n".join([*described, source, versions(), _machine(), _settings()])
    return hashlib.sha256(everything.encode()).hexdigest() + _ENDING


@functools.cache
def source_digest() -> str | None:
    """Digest of this package's source; None if it was changed after it was imported."""
    digest = hashlib.sha256()
    count = 0
    for package in (polarax, polarax.kernels):
        for root in package.__path__:
            for path in sorted(_modules(pathlib.Path(root))):
                content = path.read_bytes()
                if path.stat().st_mtime > _started:
                    return None
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
                count += 1
    return digest.hexdigest() if count else None


def _modules(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """The modules in a folder, which may be laid out by links."""
    for folder, _, files in os.walk(root, followlinks=True):
        yield from (pathlib.Path(folder) / file for file in files if file.endswith(".py"))


def versions() -> str:
    """Of Python and of the packages that what is computed depends on."""
    packages = ("polarax", "jax", "jaxlib", "numpy", "scipy", "ml_dtypes")
    return f"python {platform.python_version()} " + " ".join(f"{name} {_version(name)}" for name in packages)


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _machine() -> str:
    """The platform, the device, and what the processor can do: machine code is made for it."""
    (device,) = jax.local_devices()
    described = (
        f"{platform.machine()} {device.platform} {device.device_kind} {device.client.platform_version} {cores()}"
    )
    if device.id:  # of one process among several: a program is for the device with its number
        described += f" device {device.id}"
    return f"{described} {_processor()}" if device.platform == "cpu" else described


def _processor() -> str:
    """Model and features of the processor, where the system says them."""
    lines: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part"):
                lines.setdefault(name.strip(), value.strip())
    return f"{platform.processor()} {lines}"


def _settings() -> str:
    """JAX's settings, as they hold here and now, and XLA's flags."""
    names = sorted(name for name in jax.config.values if not any(word in name for word in _NO_MATTER))
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return repr([(name, getattr(jax.config, name, jax.config.values[name])) for name in names]) + repr(flags)


# Files.


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    """A descriptor of the folder; raises PermissionError if it is another user's, or others can write it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _refuse_foreign(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_foreign(descriptor: int) -> None:
    about = os.fstat(descriptor)
    if about.st_uid != os.geteuid() or about.st_mode & _WRITTEN_BY_OTHERS:
        raise PermissionError("another user can write it")


def _payload(folder: pathlib.Path, name: str) -> io.BytesIO | None:
    """What a program's file has, whole; None if it is not there, or cannot be used."""
    try:
        with _opened(folder) as place:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
            with open(descriptor, "rb") as file:
                _refuse_foreign(descriptor)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                content = file.read()
                os.utime(descriptor)  # it was used
    except OSError:
        return None
    head, payload = content[: len(_MAGIC) + _DIGEST], content[len(_MAGIC) + _DIGEST :]
    return io.BytesIO(payload) if head == _MAGIC + hashlib.sha256(payload).digest() else None


def _load(folder: pathlib.Path, name: str) -> _Recent | None:
    """The program and what it gives; None if it is not there, or cannot be used."""
    payload = _payload(folder, name)
    if payload is None:
        return None
    _prepare_platform()
    try:
        shapes = _shapes_in(payload)
        program, given, taken = pickle.load(payload)
        # Without them it would be loaded for the devices of all processes.
        devices = jax.local_devices()
        program = serialize_executable.deserialize_and_load(program, given, taken, execution_devices=devices)
        return _Recent(program, shapes)
    except Exception:  # whatever it is that this JAX cannot read: the program is made again
        return None


@functools.cache
def _prepare_platform() -> None:
    """Has JAX look up LAPACK's functions, which it does when a program that calls them is lowered, and not before."""
    jax.jit(jax.numpy.linalg.eigvalsh).lower(jax.ShapeDtypeStruct((2, 2), np.float32))


def _keep(folder: pathlib.Path, name: str, program: jax.stages.Compiled) -> None:
    """Writes a program, whole or not at all; without success where it cannot be."""
    try:
        payload = pickle.dumps(_shapes_of(program)) + pickle.dumps(serialize_executable.serialize(program))
    except Exception:  # some programs cannot be serialised, such as those that call back
        return
    content = _MAGIC + hashlib.sha256(payload).digest() + payload
    temporary = None
    try:
        with _opened(folder):
            descriptor, temporary = tempfile.mkstemp(suffix=_PARTIAL, dir=folder)  # for this user alone
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / name)
            temporary = None
            _make_room(folder)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _shapes_in(payload: io.BytesIO) -> Any:
    """What a program's file begins with."""
    shapes = pickle.load(payload)
    if not all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes)):
        raise ValueError("no shapes")
    return shapes


def _shapes_of(program: jax.stages.Compiled) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.out_info)


def _make_room(folder: pathlib.Path) -> None:
    """Removes what was not used for longest until the rest is no more than `MOST_BYTES`, and what nobody writes on."""
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            about = entry.stat(follow_symlinks=False)
            if entry.name.endswith(_ENDING):
                files.append((about.st_mtime, about.st_size, entry.path))
            elif entry.name.endswith(_PARTIAL) and about.st_mtime < time.time() - _ABANDONED:
                os.unlink(entry.path)
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MOST_BYTES:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size
