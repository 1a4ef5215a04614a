"""Guards for what a strict comparison of outputs does not see."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["01_data", "02_teacher", "03_bottleneck", "04_loss", "05_training", "06_evaluation"]
PAIR = (
    "The young nurse thanked the old teacher on Monday.",
    "On Monday, the old teacher was thanked by the young nurse.",
)
SET_UP = """\
import torch
from transformers.utils import logging

from kvlib import get_profile, plots

logging.set_verbosity_error()  # new heads start untrained, and that is meant
print("profile:", get_profile().name)"""


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_chapters_are_there():
    assert [path.stem for path in PATHS] == NAMES


def test_every_cell_was_run_once_and_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_error_no_stderr_no_bars_no_paths(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"it/s|s/it|Warning|/home/|/tmp/|/root/| at 0x[0-9a-f]+", text), text


def test_set_up_is_the_same_everywhere(notebook):
    assert code_cells(notebook)[0].source == SET_UP


def test_the_sentence_pair_is_followed(notebook):
    sources = "\n".join(cell.source for cell in notebook.cells)
    assert all(sentence in sources for sentence in PAIR)


def test_every_chapter_draws_predicts_fails_and_recaps(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    images = [out for cell in code_cells(notebook) for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(images) >= 2
    for part in ("**You will build", "**Predict", "<details>", "Where this goes wrong", "## Recap"):
        assert part in text, part
    assert text.count("<details>") == text.count("</details>")


def test_cells_hold_one_idea(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 20, cell.source
    assert 15 <= len(code_cells(notebook)) <= 27


def test_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.(?:ipynb|md))", cell.source):
                assert (FOLDER / target).is_file(), target


def test_ignored_outputs_are_real_models_numbers_followed_by_a_claim(notebook):
    cells = code_cells(notebook)
    for position, cell in enumerate(cells):
        assert set(cell.metadata.get("tags", [])) <= {"nbval-ignore-output"}
        assert not re.search(r"^\s*#\s*(NBVAL|PYTEST)_", cell.source, re.M), "comments would win over tags"
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            following = cells[position + 1]
            assert "nbval-ignore-output" not in following.metadata.get("tags", []), cell.source
            assert "assert" in following.source, cell.source
            assert "print" in following.source, cell.source
            assert following.outputs, cell.source


def test_ignored_cells_are_those_of_the_allow_list(request):
    found = {
        f"{path.stem}: {next(line for line in cell.source.splitlines() if line.strip())}"
        for path in PATHS
        for cell in code_cells(nbformat.read(path, as_version=4))
        if "nbval-ignore-output" in cell.metadata.get("tags", [])
    }
    allowed = set((Path(__file__).parent / "ignored_cells.txt").read_text().splitlines())
    assert found == allowed, "review the new cell, then write its line into tests/ignored_cells.txt"


def typed(stem, name):
    """Execute the definition of `name` that stands in a notebook and return it."""
    notebook = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)
    imports, definition = [], None
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imports.append(node)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and definition is None:
                definition = node
    assert definition is not None, f"{stem} does not define {name}"
    space = {}
    exec(compile(ast.Module([*imports, definition], []), f"{stem}.ipynb", "exec"), space)
    return space[name]
