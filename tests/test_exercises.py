"""Every exercise proves itself: stub, solution and wrong answers, on the notebooks' own text."""

import contextlib
import importlib
import io
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import browser
import nbformat
import pytest
import torch
import wrong_answers
from nbclient import NotebookClient

from kvlib.exercises import EXERCISES, check, progress

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {path.stem[:2]: path for path in sorted(FOLDER.glob("*.ipynb"))}
for path in sorted(Path(wrong_answers.__file__).parent.glob("chapter_*.py")):
    importlib.import_module(f"wrong_answers.{path.stem}")
WRONG = wrong_answers.WRONG_ANSWERS
IDS = list(EXERCISES)


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("KVLIB_PROGRESS", str(tmp_path / "progress"))


def read(exercise_id):
    return nbformat.read(NOTEBOOKS[exercise_id.split(".")[0].zfill(2)], as_version=4)


def cells_of(exercise_id, notebook=None):
    """Return the four cells of an exercise: its text, stub, check, and hint with solution."""
    cells = {cell.id: cell for cell in (notebook or read(exercise_id)).cells}
    name = f"exercise-{exercise_id.replace('.', '-')}"
    return [cells[f"{name}-{part}"] for part in ("text", "stub", "check", "answers")]


def solution_of(exercise_id):
    return re.search(r"```python\n(.*?)```", cells_of(exercise_id)[3].source, re.S).group(1).rstrip()


def function_of(exercise_id, source):
    """Execute the set-up cell and `source`, and return the function that the check cell hands over."""
    name = re.fullmatch(rf'_ = check\("{re.escape(exercise_id)}", (\w+)\)', cells_of(exercise_id)[2].source).group(
        1
    )
    space = {}
    code = (cell.source for cell in read(exercise_id).cells if cell.cell_type == "code")
    set_up = next(source for source in code if "import check" in source)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(set_up, space)  # the course's own tests run the course's own cells
        exec(source, space)
    return space[name]


def test_there_are_enough_and_each_chapter_has_two_to_four():
    chapters = [exercise_id.split(".")[0].zfill(2) for exercise_id in IDS]
    assert len(IDS) >= 24
    assert sorted(set(chapters)) == sorted(NOTEBOOKS)
    assert all(2 <= chapters.count(chapter) <= 4 for chapter in NOTEBOOKS)
    in_notebooks = [
        cell.id.removeprefix("exercise-").removesuffix("-stub").replace("-", ".")
        for path in NOTEBOOKS.values()
        for cell in nbformat.read(path, as_version=4).cells
        if cell.id.endswith("-stub")
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
    order = [cell.id for cell in read(exercise_id).cells]
    first = order.index(text.id)
    assert order[first : first + 4] == [cell.id for cell in cells_of(exercise_id)]


@pytest.mark.parametrize("exercise_id", IDS)
def test_stub_is_not_attempted(exercise_id, capsys):
    stub = function_of(exercise_id, cells_of(exercise_id)[1].source)
    assert check(exercise_id, stub) is False
    assert capsys.readouterr().out == f"Exercise {exercise_id}: not attempted yet\n"
    assert cells_of(exercise_id)[2].outputs[0]["text"] == f"Exercise {exercise_id}: not attempted yet\n"


@pytest.mark.parametrize("exercise_id", IDS)
def test_solution_in_the_notebook_passes_alone(exercise_id, capsys):
    solution = function_of(exercise_id, solution_of(exercise_id))
    passed = check(exercise_id, solution)
    said = capsys.readouterr().out
    assert passed, said
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
    assert check(exercise_id, endless, seconds=0.3) is False
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


def test_progress_is_remembered_by_another_process(capsys):
    assert check("4.1", function_of("4.1", solution_of("4.1")))
    capsys.readouterr()
    progress()
    here = capsys.readouterr().out
    other = subprocess.run(
        [sys.executable, "-c", "from kvlib.exercises import progress; progress()"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == here
    chapter = [exercise_id for exercise_id in IDS if exercise_id.startswith("4.")]
    assert f"chapter 04: 1 of {len(chapter)} done, to do: {', '.join(chapter[1:])}\n" in here
    assert here.splitlines()[-1].split(":")[1].strip() == f"1 of {len(IDS)}"


def test_no_stub_shadows_a_name_that_the_chapter_uses():
    for path in NOTEBOOKS.values():
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        chapter = "\n".join(cell.source for cell in code if not cell.id.startswith("exercise-"))
        for cell in code:
            if cell.id.endswith("-stub"):
                for name in re.findall(r"^(?:def|class) (\w+)|^(\w+) = ", cell.source, re.M):
                    assert not re.search(rf"\b{''.join(name)}\b", chapter), (path.stem, name)


def solved(path):
    """Read a notebook, without outputs, every stub replaced by its solution."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.id.endswith("-stub"):
            cell.source = solution_of(cell.id.removeprefix("exercise-").removesuffix("-stub").replace("-", "."))
    return notebook


def assert_all_pass(checks):
    """Assert that each check cell's outputs say that all properties hold."""
    assert checks
    for outputs in checks:
        said = "".join(output.get("text", "") for output in outputs)
        assert "passes all" in said, said


@pytest.mark.skipif(browser.AVAILABLE, reason="test_browser.py runs the solved copies, in a real browser")
@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_solved_copy_runs_to_the_end(path):
    notebook = solved(path)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
    assert_all_pass([cell.outputs for cell in notebook.cells if cell.id.endswith("-check")])
    outputs = itertools.chain.from_iterable(cell.get("outputs", []) for cell in notebook.cells)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
