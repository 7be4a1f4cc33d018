"""The folders are packaged as setup.cfg says, and work installed."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"polarax": "engine", "polarax.kernels": "kernels", "polarax.loaders": "loaders"}
# Python at the top level that is not installed.
NOT_INSTALLED = {"benchmarks", "docs", "tests"}
# Needed by an extra only: the public API is imported without them.
OF_EXTRAS = (
    "boto3",
    "gguf",
    "hypothesis",
    "jinja2",
    "matplotlib",
    "moto",
    "pytest",
    "tokenizers",
    "torch",
    "transformers",
)
TIMEOUT = 120  # seconds for any one subprocess; the slowest takes about ten


def _setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def _run(*command: str | Path, cwd: Path) -> str:
    """Runs a command away from this process' Python settings; returns what it printed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _source_files() -> list[Path]:
    """Files of the repository, relative to its root: tracked, or new and not ignored by git."""
    if (ROOT / ".git").exists():
        command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        listed = _run(*command, cwd=ROOT)
        files = [Path(name) for name in listed.split("\0") if name]
    else:  # an unpacked archive
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        files = [
            path
            for path in files
            if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
            and path.parts[0] not in {"build", "dist", "runs"}
        ]
    return sorted(path for path in files if (ROOT / path).is_file())


SOURCE_FILES = _source_files()
PYTHON_FILES = [path for path in SOURCE_FILES if path.suffix == ".py"]


def _installed_name(path: Path) -> str:
    """Dotted name under which a file of one of the three folders is imported."""
    package = {folder: name for name, folder in FOLDERS.items()}[path.parts[0]]
    return ".".join([package, *path.with_suffix("").parts[1:]])


def _package_of(path: Path) -> str:
    return _installed_name(path).rpartition(".")[0]


PACKAGED_FILES = [path for path in PYTHON_FILES if path.parts[0] in FOLDERS.values()]


# The folders and setup.cfg.


def test_folders_are_mapped():
    lines = _setup_cfg()["options"]["package_dir"].split("\n")
    mapping = dict(line.split(" = ") for line in lines if line)
    assert mapping == FOLDERS


def test_packages_listed_are_the_folders_there_are():
    listed = _setup_cfg()["options"]["packages"].split()
    assert sorted(listed) == sorted({_package_of(path) for path in PACKAGED_FILES})


def test_packages_have_an_init():
    folders = {path.parent for path in PACKAGED_FILES}
    assert {folder for folder in folders if folder / "__init__.py" not in PYTHON_FILES} == set()


def test_no_package_is_left_out():
    tops = {path.parts[0] for path in PYTHON_FILES if path.name == "__init__.py"}
    assert tops - NOT_INSTALLED == set(FOLDERS.values())


# The wheel.


def _copy_of_the_tree(to: Path) -> Path:
    """The source files alone: a wheel picks up what build/ and egg-info keep of earlier ones."""
    for path in SOURCE_FILES:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, to / path)
    return to


def _pip(*arguments: str | Path, cwd: Path) -> str:
    return _run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of a clean copy of the tree, built with what is installed here (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = _copy_of_the_tree(folder / "tree")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    _pip("wheel", *options, tree, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """Interpreter of a fresh environment with the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    interpreter = folder / scripts / "python"
    _pip("--python", interpreter, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = _run(interpreter, "-c", where, cwd=folder).strip()
    # A path named in a .pth file is searched, but .pth files in it are not read: an editable
    # polarax in this environment stays unseen.
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    Path(there, "dependencies.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    return interpreter


def _names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return {name for name in opened.namelist() if not name.endswith("/")}


def test_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    installed = {
        PurePosixPath(*name.split(".")) / PurePosixPath(*path.parts[1:])
        for path in SOURCE_FILES
        for name, folder in FOLDERS.items()
        if path.parts[0] == folder
    }
    packaged = {name for name in _names(wheel) if ".dist-info/" not in name}
    assert packaged == {str(path) for path in installed}


def test_wheel_says_what_it_is(wheel):
    version = _setup_cfg()["metadata"]["version"]
    assert wheel.name == f"polarax-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        metadata = opened.read(f"polarax-{version}.dist-info/METADATA").decode()
        licence = opened.read(f"polarax-{version}.dist-info/licenses/LICENSE").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    tree = _copy_of_the_tree(tmp_path / "tree")
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    _run(sys.executable, "-c", build, cwd=tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tmp_path)
    _pip("wheel", *options, sdist, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert _names(built) == _names(wheel)


def test_public_api_of_the_installed_wheel(python, tmp_path):
    version = _setup_cfg()["metadata"]["version"]
    script = f"""
        import importlib.util, pathlib, sys, sysconfig

        for name in {OF_EXTRAS!r}:
            sys.modules[name] = None  # importing it fails
        import polarax, polarax.kernels, polarax.loaders

        home = pathlib.Path(sysconfig.get_path("purelib")).resolve()
        assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), (home, sys.prefix)
        for name in [name for name in sys.modules if name.partition(".")[0] == "polarax"]:
            path = pathlib.Path(sys.modules[name].__file__).resolve()
            assert path.is_relative_to(home / "polarax"), path
        assert polarax.__version__ == {version!r}, polarax.__version__
        for module in polarax, polarax.kernels, polarax.loaders:
            assert module.__all__, module
            for name in module.__all__:
                getattr(module, name)
        for name in {sorted(FOLDERS.values())!r}:
            assert importlib.util.find_spec(name) is None, name
        print("imported")
    """
    assert _run(python, "-I", "-c", textwrap.dedent(script), cwd=tmp_path).endswith("imported\n")


def test_every_module_of_the_installed_wheel_can_be_imported(python, wheel, tmp_path):
    files = [name.removesuffix(".py") for name in _names(wheel) if name.endswith(".py")]
    modules = sorted(name.replace("/", ".").removesuffix(".__init__") for name in files)
    modules = [name for name in modules if not name.endswith(".__main__")]
    assert modules
    script = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    _run(python, "-I", "-c", script, cwd=tmp_path)


def test_console_script_of_the_installed_wheel(python, tmp_path):
    printed = _run(python.parent / "polarax", "--help", cwd=tmp_path)
    assert "compare" in printed
