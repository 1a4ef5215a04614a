"""Run notebooks under the settings of the tests and store their outputs.

``python tests/refresh_notebooks.py`` refreshes all, ``python tests/refresh_notebooks.py 03`` those whose
name starts with 03.
"""

import sys
import time
from pathlib import Path

import nbformat
import notebook_settings
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def refresh(path: Path) -> float:
    """Run one notebook from its folder and replace its file once it is finished; return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    # no widget states: they have random names, and nobody can move a slider of a stored notebook
    # and what a cell prints in one piece: where the pieces end is chance
    options = {"record_timing": False, "store_widget_state": False, "coalesce_streams": True}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", **options)
    client.execute(cwd=str(path.parent))
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # without a kernel it would show as an error; its text stays
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    # the interpreter's version would change with every machine
    notebook.metadata["language_info"] = {"name": "python"}
    temporary = path.with_suffix(".temporary")
    nbformat.write(notebook, temporary)
    temporary.replace(path)
    return seconds


if __name__ == "__main__":
    notebook_settings.apply()
    for path in sorted(NOTEBOOKS.glob(f"{sys.argv[1] if len(sys.argv) > 1 else ''}*.ipynb")):
        print(f"{path.name}: {refresh(path):.0f} s", flush=True)
