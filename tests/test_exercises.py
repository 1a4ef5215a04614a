"""Every exercise proves itself: stub, solution and wrong answers, on the notebooks' own text."""

import ast
import contextlib
import copy
import functools
import importlib
import io
import itertools
import re
import symtable
import sys
import time
from pathlib import Path

import browser
import nbformat
import pytest
import torch
import wrong_answers
from nbclient import NotebookClient
from processes import exit_code, fork, linux_only

from workbook import check, progress
from workbook.checks import EXERCISES

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {path.stem[:2]: path for path in sorted(FOLDER.glob("*.ipynb"))}
for path in sorted(Path(wrong_answers.__file__).parent.glob("chapter_*.py")):
    importlib.import_module(f"wrong_answers.{path.stem}")
WRONG = wrong_answers.WRONG_ANSWERS
IDS = list(EXERCISES)


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("KVLIB_PROGRESS", str(tmp_path / "progress"))


@functools.cache
def read(path):
    """Read a notebook, once; copy it before changing it."""
    return nbformat.read(path, as_version=4)


def notebook_of(exercise_id):
    return read(NOTEBOOKS[exercise_id.split(".")[0].zfill(2)])


def cells_of(exercise_id):
    """Return the four cells of an exercise: its text, stub, check, and hint with solution."""
    cells = {cell.id: cell for cell in notebook_of(exercise_id).cells}
    name = f"exercise-{exercise_id.replace('.', '-')}"
    return [cells[f"{name}-{part}"] for part in ("text", "stub", "check", "answers")]


def exercise_of(stub):
    """Return the id of the exercise that a stub cell belongs to."""
    return stub.id.removeprefix("exercise-").removesuffix("-stub").replace("-", ".")


def solution_of(exercise_id):
    return re.search(r"```python\n(.*?)```", cells_of(exercise_id)[3].source, re.S).group(1).rstrip()


def is_set_up(cell):
    return cell.cell_type == "code" and "import check" in cell.source


@functools.cache
def after_set_up(source):
    """Execute a set-up cell and return its names."""
    space = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(source, space)  # the course's own tests run the course's own cells
    return space


def function_of(exercise_id, source):
    """Execute `source` after the set-up cell alone, and return the function that the check cell hands over."""
    call = rf'_ = check\("{re.escape(exercise_id)}", (\w+)\)'
    name = re.fullmatch(call, cells_of(exercise_id)[2].source).group(1)
    (set_up,) = filter(is_set_up, notebook_of(exercise_id).cells)
    space = dict(after_set_up(set_up.source))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(source, space)
    return space[name]


def test_there_are_enough_and_each_chapter_has_two_to_four():
    chapters = [exercise_id.split(".")[0].zfill(2) for exercise_id in IDS]
    assert len(IDS) >= 24
    assert sorted(set(chapters)) == sorted(NOTEBOOKS)
    assert all(2 <= chapters.count(chapter) <= 4 for chapter in NOTEBOOKS)
    in_notebooks = [
        exercise_of(cell) for path in NOTEBOOKS.values() for cell in read(path).cells if cell.id.endswith("-stub")
    ]
    assert in_notebooks == IDS


@pytest.mark.parametrize("exercise_id", IDS)
def test_cells_say_what_the_registry_says(exercise_id):
    exercise = EXERCISES[exercise_id]
    text, stub, _, answers = cells_of(exercise_id)
    stars = "★" * exercise.difficulty + "☆" * (3 - exercise.difficulty)
    assert text.source.startswith(
        f"### Exercise {exercise_id} · {exercise.title}\n\n{stars} · {exercise.minutes} min"
    )
    assert "raise NotImplementedError" in stub.source
    assert answers.source.count("<details>") == 2
    assert "<summary>Hint</summary>" in answers.source and "<summary>Solution</summary>" in answers.source
    order = [cell.id for cell in notebook_of(exercise_id).cells]
    first = order.index(text.id)
    assert order[first : first + 4] == [cell.id for cell in cells_of(exercise_id)]


@pytest.mark.parametrize("exercise_id", IDS)
def test_stub_is_not_attempted(exercise_id, capsys):
    stub = function_of(exercise_id, cells_of(exercise_id)[1].source)
    assert check(exercise_id, stub) is False
    assert capsys.readouterr().out == f"Exercise {exercise_id}: not attempted yet\n"
    assert cells_of(exercise_id)[2].outputs[0]["text"] == f"Exercise {exercise_id}: not attempted yet\n"


@pytest.mark.parametrize("exercise_id", IDS)
@pytest.mark.filterwarnings("error")  # in a notebook a warning would be printed
def test_solution_in_the_notebook_passes_alone(exercise_id, capsys):
    solution = function_of(exercise_id, solution_of(exercise_id))
    passed = check(exercise_id, solution)
    said, errors = capsys.readouterr()
    assert passed, said
    assert errors == ""
    assert said == f"Exercise {exercise_id}: passes all {len(EXERCISES[exercise_id].probes)} checks\n"


@pytest.mark.filterwarnings("ignore")  # some mistakes make numpy or torch warn
@pytest.mark.parametrize("answer", WRONG, ids=lambda answer: f"{answer.exercise}-{answer.mistake}")
def test_wrong_answer_is_rejected_by_its_property(answer, capsys):
    assert check(answer.exercise, answer.function) is False
    said = capsys.readouterr().out
    assert f"fails “{answer.rejected_by}”" in said, said
    assert answer.hint in said.split("hint: ")[1], said


@pytest.mark.parametrize("exercise_id", IDS)
def test_every_property_rejects_somebody(exercise_id):
    wrong = [answer for answer in WRONG if answer.exercise == exercise_id]
    assert len({answer.mistake for answer in wrong}) >= 3
    rejecting = {answer.rejected_by for answer in wrong}
    properties = [probe.property_name for probe in EXERCISES[exercise_id].probes]
    assert len(set(properties)) == len(properties)
    assert set(properties) <= rejecting


def endless(*_args, **_kwargs):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def leaves(*_args, **_kwargs):
    sys.exit("enough")


@pytest.mark.parametrize("exercise_id", IDS)
@pytest.mark.parametrize(
    "function",
    [
        lambda *_a, **_k: None,
        lambda *_a, **_k: "seven",
        lambda *_a, **_k: torch.full((7, 2, 1), torch.nan),
        lambda *_a, **_k: [],
        lambda *_a, **_k: 1 / 0,
        lambda: 1,
        leaves,
        7,
    ],
    ids=["None", "text", "odd shape", "empty", "raises", "no arguments", "exits", "no function"],
)
def test_nonsense_fails_without_an_exception(exercise_id, function, capsys):
    assert check(exercise_id, function) is False
    said = capsys.readouterr().out
    assert "fails “" in said and "saw:" in said and "hint:" in said


@pytest.mark.parametrize("exercise_id", IDS)
def test_endless_loop_is_stopped(exercise_id, capsys):
    start = time.perf_counter()
    assert check(exercise_id, endless, seconds=0.1) is False
    assert time.perf_counter() - start < 3  # a thread that does not end is waited for one second more
    assert "fails “comes to an end”" in capsys.readouterr().out


def test_prints_are_counted_and_states_given_back(capsys):
    def chatty(student_logits, teacher_logits, temperature):
        print("one\ntwo")
        torch.set_default_dtype(torch.float64)
        torch.rand(3)
        raise ValueError

    state = torch.get_rng_state()
    assert check("4.1", chatty) is False
    said = capsys.readouterr().out
    assert "“runs without an error”" in said and "printed 2 lines" in said and "one\n" not in said
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_changed_inputs_are_named(capsys):
    def in_place(student_logits, teacher_logits, temperature):
        student_logits /= temperature
        return student_logits.sum()

    assert check("4.1", in_place) is False
    assert "fails “leaves its inputs as they were”" in capsys.readouterr().out


def test_unknown_exercise_is_named(capsys):
    assert check("4.99", print) is False
    assert "there is no exercise '4.99': choose one of" in capsys.readouterr().out


@linux_only
def test_progress_is_remembered_by_another_process(capsys):
    assert exit_code(fork(check, "4.1", function_of("4.1", solution_of("4.1")))) == 0
    capsys.readouterr()
    progress()
    here = capsys.readouterr().out
    chapter = [exercise_id for exercise_id in IDS if exercise_id.startswith("4.")]
    assert f"chapter 04: 1 of {len(chapter)} done, to do: {', '.join(chapter[1:])}\n" in here
    assert here.splitlines()[-1].split(":")[1].strip() == f"1 of {len(IDS)}"


def bound_names(source):
    """Return what the top level of a cell binds: by name what is imported, or None for what is defined there."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: module + alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = None
        else:
            stored = [part for part in ast.walk(node) if isinstance(getattr(part, "ctx", None), ast.Store)]
            found |= {part.id: None for part in stored if isinstance(part, ast.Name)}
    return found


def test_no_answer_shadows_a_name_that_the_chapter_uses():
    for path in NOTEBOOKS.values():
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        chapter = "\n".join(cell.source for cell in code if not cell.id.startswith("exercise-"))
        before = {}
        for cell in code:
            if not cell.id.startswith("exercise-"):
                before |= bound_names(cell.source)
            elif cell.id.endswith("-stub"):
                for name, imported in bound_names(f"{cell.source}\n{solution_of(exercise_of(cell))}").items():
                    if imported:
                        assert before.get(name, imported) == imported, (path.stem, name)
                    else:
                        assert not re.search(rf"\b{name}\b", chapter), (path.stem, name)


def names_of(statement):
    """Return the names that a top-level statement binds, and those of the cell that it reads."""
    tables = [symtable.symtable(ast.unparse(statement), "cell", "exec")]
    for table in tables:
        tables += table.get_children()
    top = tables[0].get_symbols()
    inner = [symbol for table in tables[1:] for symbol in table.get_symbols() if symbol.is_global()]
    bound = {symbol.get_name() for symbol in top if symbol.is_assigned() or symbol.is_imported()}
    read = {symbol.get_name() for symbol in [*top, *inner] if symbol.is_referenced()}
    # what a loop reads of its own variables it has bound before
    return bound, read - bound if isinstance(statement, (ast.For, ast.With)) else read


def needed_sources(cells, shown):
    """Return the sources of the code cells `shown` by id, and of the cells that bind last what these read.

    Where that is an import, the imports of its cell are enough.
    """
    assert set(shown) <= {cell.id for cell in cells}
    found, missing = {}, set()
    for cell in reversed([cell for cell in cells if cell.cell_type == "code"]):
        imports, imported, bound, read = [], set(), set(), set()
        for statement in ast.parse(cell.source).body:
            binds, reads = names_of(statement)
            read |= reads - bound
            bound |= binds
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                imports.append(ast.unparse(statement))
                imported |= binds
        if cell.id in shown or missing & bound - imported:
            found[cell.id] = cell.source
            missing = missing - bound | read
        elif missing & imported:
            found[cell.id] = "\n".join(imports)
            missing -= imported
    return found


def solved(path, shown=()):
    """Copy header, set-up cell and exercises of a notebook without outputs, every stub replaced by its solution.

    And the cells of the ids `shown`, with what they need: strict comparison runs the rest.
    """
    notebook = copy.deepcopy(read(path))
    needed = needed_sources(notebook.cells, shown)
    kept = {notebook.cells[0].id, *needed, *shown}
    notebook.cells = [
        cell for cell in notebook.cells if cell.id in kept or is_set_up(cell) or cell.id.startswith("exercise-")
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.id.endswith("-stub"):
            cell.source = solution_of(exercise_of(cell))
        elif not is_set_up(cell):
            cell.source = needed.get(cell.id, cell.source)
    return notebook


def assert_all_pass(checks):
    """Assert that each check cell's outputs say that all properties hold."""
    assert checks
    for outputs in checks:
        said = "".join(output.get("text", "") for output in outputs)
        assert "passes all" in said, said


@pytest.mark.skipif(browser.AVAILABLE, reason="test_browser.py runs solved copies in a real browser")
@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_solved_copy_runs_to_the_end(path):
    notebook = solved(path)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
    assert_all_pass([cell.outputs for cell in notebook.cells if cell.id.endswith("-check")])
    outputs = itertools.chain.from_iterable(cell.get("outputs", []) for cell in notebook.cells)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
