"""The environment check of notebook 00 names what is wrong, without needing any of it."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def run(code, *options, **environment):
    return subprocess.run(
        [sys.executable, *options, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r}); {code}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER,  # not the project, whose egg-info would count as installed
        check=True,
    ).stdout


def test_all_is_well_here():
    assert run("from workbook import environment; environment.report()") == "environment: all as it should be\n"


def test_nothing_installed_is_said_without_an_import_error():
    said = run("from workbook import environment; environment.report()", "-S")  # no site-packages
    assert "✗ torch is not installed: run" in said and "✗ kvlib is not installed" in said
    assert "pip install -r requirements.txt" in said
    pins = [line for line in (FOLDER.parent / "requirements.txt").read_text().splitlines() if "==" in line]
    assert said.splitlines()[-1] == f"environment: {len(pins) + 1} to mend, see above"


def test_other_versions_profiles_and_folders_are_named(tmp_path):
    other = tmp_path / "requirements.txt"
    other.write_text("torch==1.0.0\nnumpy-that-is-not==2.0\n-e .\n")
    code = "from pathlib import Path; from workbook import environment as e; "
    said = run(f"{code} print(*e.problems(Path({str(other)!r})), sep='\\n')", KVLIB_PROFILE="huge")
    assert "torch is 2.13.0, the stored outputs were made with 1.0.0" in said
    assert "numpy-that-is-not is not installed" in said
    assert "KVLIB_PROFILE is 'huge': set it to one of quick, real, base" in said


def test_profiles_and_runs_folder_are_the_librarys(tmp_path, monkeypatch):
    from kvlib import PROFILES
    from kvlib.recipe import runs_folder

    folder = "from workbook import environment; print(environment.RUNS, end='')"
    assert run(folder) == str(runs_folder())
    monkeypatch.setenv("KVLIB_RUNS", str(tmp_path))
    assert run(folder, KVLIB_RUNS=str(tmp_path)) == str(runs_folder()) == str(tmp_path)
    assert set(eval(run("from workbook import environment; print(environment.PROFILES)"))) == set(PROFILES)


def test_too_little_disk_is_named(tmp_path):
    code = (
        "import shutil, collections; from pathlib import Path; from workbook import environment as e; "
        "Usage = collections.namedtuple('Usage', 'total used free'); "
        "shutil.disk_usage = lambda path: Usage(9, 9, 10**9); "
        f"print(*e._room(Path({str(tmp_path)!r}) / 'new' / 'runs'), sep='\\n')"
    )
    assert f"0.9 GB are free on the disk of {tmp_path}" in run(code)
