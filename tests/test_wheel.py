"""The wheel holds all that the package needs, and runs by itself in an environment of its own.

The sdist is built first and the wheel from it, so a file that the sdist lacks fails here. The environment is a new one
in which `rareneuron` is not to be found until the wheel is installed; its dependencies are those of the environment
that runs the tests, seen through a `.pth` file: whose own `.pth` files, such as that of an editable install of this
package, Python doesn't follow. Nothing reaches the network.
"""

import ast
import os
import re
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 70 * 2**20  # 55 MiB today, nearly all of it the embedded series


def run(*command, cwd, check=True, **env):
    """Run a command that sees no code but its own interpreter's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | env
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    path = os.environ.get("PYTHONPATH", "")  # build and hatchling may be found through it
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out, PYTHONPATH=path)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return SimpleNamespace(wheel=wheel, sdist=sdist)


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """An environment with the wheel, and what importing it said before the wheel was there."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder / "venv")}))
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    before = run(python, "-c", "import torch, rareneuron", cwd=folder, check=False)
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--force-reinstall", built.wheel, cwd=folder)
    return SimpleNamespace(folder=folder, python=python, packages=packages, before=before)


def strangers(names):
    """Names in an sdist that have no place there."""
    top = {"src", "tests", "docs", "examples", "benchmarks"}
    files = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md"}
    files |= {"SECURITY.md", "constraints.txt", "pyproject.toml", ".gitignore"}
    for name in names:
        parts = Path(name).parts[1:]  # the first is the package with its version
        if parts[0] not in (files if len(parts) == 1 else top) or "__pycache__" in parts:
            yield name


@pytest.mark.slow
def test_the_sdist_holds_what_is_in_the_repository_and_nothing_that_work_leaves_behind(built):
    with tarfile.open(built.sdist) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    assert list(strangers(names)) == []
    inside = {"/".join(Path(name).parts[1:]) for name in names}
    assert {"tests/golden/embedded_study.json", "docs/conf.py", "LICENSE", "constraints.txt"} <= inside
    assert built.sdist.stat().st_size < MOST_BYTES


def test_the_check_sees_what_work_leaves_behind():
    names = ["runs/embedded/run.json", "build/docs/index.html", "dist/a.whl", "notes.txt", "src/a/__pycache__/b.pyc"]
    names = [f"rareneuron-0.1.0/{name}" for name in names]
    assert list(strangers([*names, "rareneuron-0.1.0/src/rareneuron/__init__.py"])) == names


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    there = {str(path.relative_to(source)) for path in (source / "rareneuron").rglob("*") if path.is_file()}
    assert names == {name for name in there if "__pycache__" not in name}
    assert len([name for name in names if name.endswith("model.safetensors")]) == 10
    assert built.wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_nothing_but_the_wheel_supplies_the_package(clean):
    """A control: torch is found before the wheel is installed, and this package is not."""
    assert re.search(r"No module named '?rareneuron", clean.before.stderr), clean.before.stderr
    where = run(clean.python, "-c", "import rareneuron; print(rareneuron.__file__)", cwd=clean.folder).stdout
    assert Path(where.strip()) == clean.packages / "rareneuron" / "__init__.py"


@pytest.mark.slow
def test_the_installed_command_says_what_it_can_do(clean):
    done = run(clean.python.parent / "rareneuron", "--help", cwd=clean.folder)
    assert "study" in done.stdout


@pytest.mark.slow
def test_the_installed_command_plans_a_study_of_the_embedded_series(clean):
    done = run(clean.python.parent / "rareneuron", "study", "--dry-run", cwd=clean.folder, OMP_NUM_THREADS="1")
    assert "4096" in done.stdout + done.stderr
    assert not (clean.folder / "runs").exists()


# --- dependencies: the clean environment sees more than the wheel asks for


# Extras: imported where they are wanted, with a message where they are missing.
OPTIONAL = {"datasets", "gguf", "numba", "ray"}
BROUGHT = {"markupsafe"}  # by jinja2, whose markup it is


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(sources):
    """Packages that are imported and are neither of the standard library nor among the dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonical(re.match(r"[\w.-]+", line)[0]) for line in project["dependencies"]}
    providers = packages_distributions()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in (
                {name.split(".")[0] for name in names} - sys.stdlib_module_names - OPTIONAL - BROUGHT - {"rareneuron"}
            ):
                if not declared & {canonical(name) for name in providers.get(top, [])}:
                    yield top


def test_what_is_imported_is_declared():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "rareneuron").rglob("*.py")]
    assert set(undeclared(sources)) == set()


def test_the_check_sees_an_import_that_is_not_declared():
    sources = ["import os, numpy.linalg", "def f():\n    from pytest import raises", "import no_such_package"]
    assert list(undeclared(sources)) == ["pytest", "no_such_package"]
