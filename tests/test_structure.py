"""Imports of the library and of the workbook, read from their source, and the table of stages."""

import ast
import shutil
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from shared_stages import finished_stages, shared_recipe

from kvlib.recipe import STAGES, needed_stages
from kvlib.recipe import stages as table
from kvlib.recipe.experiment import STARTS
from kvlib.recipe.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"kvlib": ROOT / "kvlib", "workbook": ROOT / "notebooks" / "workbook"}
# a module imports only from those before it
CORE = (
    "kvlib.machine",
    "kvlib.cache",
    "kvlib.checkpoints",
    "kvlib.pretrained",
    "kvlib.sources",
    "kvlib.sources.files",
    "kvlib.search",
    "kvlib.data",
    "kvlib.augmentation",
    "kvlib.sources.glue",
    "kvlib.sources.own_data",
    "kvlib.metrics",
    "kvlib.teacher",
    "kvlib.bottleneck",
    "kvlib.student",
    "kvlib.loss",
    "kvlib.training",
    "kvlib.evaluation",
    "kvlib.explore",
)
ORDER = (
    *CORE,
    "kvlib.recipe.profiles",
    "kvlib.recipe.stages",
    "kvlib.recipe.experiment",
    "kvlib.recipe.report",
    "kvlib.recipe.distillation",
    "kvlib.recipe.evidence",
    "kvlib.recipe.submission",
    "kvlib.continual",
    "kvlib.continual.learners",
    "kvlib.continual.measures",
    "kvlib.continual.streams",
    "kvlib.continual.suppression",
    "kvlib.continual.study",
    "kvlib.continual.in_turn",
    "kvlib.continual.grid",
    "kvlib.recipe.command_line",
    "kvlib.recipe",
    "kvlib",
    "kvlib.__main__",
)


def modules(packages):
    """Return the files of packages by the name that they are imported by."""
    found = {}
    for package, folder in packages.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(name, path, known):
    """Return the modules among `known` that one imports, anywhere in its source, with the lines."""
    found = {}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # from . import x: relative to the package
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # a module of the package, or a name that the package has
            wanted = [one if (one := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        found |= {module: node.lineno for module in wanted if module in known}
    return found


def breaks_of_order(found, order):
    """Return a line for each import that does not go to an earlier module, and for each module without a place."""
    places = {name: place for place, name in enumerate(order)}
    lines = [f"{name} has no place in the order: give it one" for name in found if name not in places]
    for name in found.keys() & places.keys():
        for module, line in found[name].items():
            if places.get(module, len(order)) >= places[name]:
                lines.append(f"{name}, line {line}, imports {module}, which comes after it")
    return sorted(lines)


def read_imports(packages):
    known = modules(packages)
    return {name: imports(name, path, known) for name, path in known.items()}


def test_imports_of_the_library_go_one_way():
    found = {name: imports for name, imports in read_imports(PACKAGES).items() if name.startswith("kvlib")}
    assert breaks_of_order(found, ORDER) == []


def test_no_imports_form_a_circle():
    sorter = TopologicalSorter(read_imports(PACKAGES))
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(f"imports form a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("from kvlib.b import x", "kvlib.a, line 1, imports kvlib.b, which comes after it"),
        ("from kvlib import b", "kvlib.a, line 1, imports kvlib.b, which comes after it"),
        ("import kvlib.b", "kvlib.a, line 1, imports kvlib.b, which comes after it"),
        ("from . import b", "kvlib.a, line 1, imports kvlib.b, which comes after it"),
        ("from .b import x", "kvlib.a, line 1, imports kvlib.b, which comes after it"),
        ("def f():\n    from kvlib.b import x", "kvlib.a, line 2, imports kvlib.b, which comes after it"),
        ("from kvlib import name", "kvlib.a, line 1, imports kvlib, which comes after it"),
        ("import workbook.checks", "kvlib.a, line 1, imports workbook.checks, which comes after it"),
    ],
)
def test_an_import_that_goes_the_other_way_is_found(source, line, tmp_path):
    for path, text in {
        "kvlib/__init__.py": "",
        "kvlib/a.py": source,
        "kvlib/b.py": "import os",
        "workbook/__init__.py": "",
        "workbook/checks.py": "from kvlib import a",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    found = read_imports({"kvlib": tmp_path / "kvlib", "workbook": tmp_path / "workbook"})
    assert found["workbook.checks"] == {"kvlib.a": 1}
    order = ("kvlib.a", "kvlib.b", "kvlib")
    library = {name: imports for name, imports in found.items() if name.startswith("kvlib")}
    assert breaks_of_order(library, order) == [line]
    assert breaks_of_order(library, order[1:])[0] == "kvlib.a has no place in the order: give it one"


def test_stages_are_made_from_one_another_without_a_circle():
    parents = {
        name: {parent for parent in (stage.source, stage.teacher) if parent} for name, stage in STAGES.items()
    }
    assert all(name == stage.name for name, stage in STAGES.items())
    assert set().union(*parents.values()) <= STAGES.keys()
    TopologicalSorter(parents).prepare()
    for name in STAGES:
        needed = needed_stages(name)
        assert needed[-1] == name
        assert all(needed.index(parent) < needed.index(child) for child in needed for parent in parents[child])


def test_every_start_is_one_that_the_experiment_knows():
    assert {stage.start for stage in STAGES.values()} == STARTS.keys()


ROW = """Stage(
    "eager", "eager student", "teacher's layers", source="teacher", teacher="teacher", schedule="teacher"
)"""


def test_a_row_more_is_a_system_in_every_list():
    source = Path(table.__file__).read_text(encoding="utf-8")
    end = "    )\n}  # fmt: skip\n"
    assert source.count(end) == 1
    changed = {"__name__": table.__name__}
    exec(source.replace(end, f"{ROW},\n{end}"), changed)
    assert list(changed["STAGES"]) == [*STAGES, "eager"]
    assert list(changed["SYSTEMS"].items()) == [*table.SYSTEMS.items(), ("eager", "eager student")]
    assert changed["COMPARED"] == (*table.COMPARED, "eager")
    assert changed["BASELINES"] == table.BASELINES
    assert changed["systems_of"]("eager") == [*table.BASELINES, "teacher", "eager"]
    assert changed["systems_of"]("all") == [*table.systems_of("all"), "eager"]
    assert changed["needed_stages"]("eager") == ["teacher", "eager"]


def test_a_row_more_is_trained_and_scored(tmp_path_factory, tmp_path, monkeypatch):
    recipe = shared_recipe(tmp_path_factory)
    recipe.experiment().model("teacher")
    teacher = finished_stages(recipe.runs)["teacher"]
    shutil.copytree(teacher, tmp_path / teacher.name)
    monkeypatch.setitem(STAGES, "eager", eval(ROW, {"Stage": Stage}))
    experiment = recipe.experiment(runs=tmp_path)
    assert experiment.score("eager")["accuracy"] > 0.8
    assert set(finished_stages(tmp_path)) == set(experiment.records) == {"teacher", "eager"}
