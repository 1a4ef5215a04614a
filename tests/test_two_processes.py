"""Two real processes, started by the launcher, that train together through gloo on the loopback address."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import finish, linux_only
from safetensors.numpy import load_file
from shared_stages import finished_stages, small_minilm, tiny_profile
from small_data import easy_rows

from kvlib import Experiment, distil, predict_logits

# the README's examples; `accelerate launch --cpu` would start one process (huggingface/accelerate#2741)
LIBRARY = Path(__file__).resolve().parents[1] / "kvlib"
EXAMPLES, MACHINE = LIBRARY / "accelerate", LIBRARY / "machine.py"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
# of the range of the logits: sums of float32 in another order (2e-7 was found)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The recipe without dropout in one process, then from a shell in two: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("two")
    source = easy_rows(folder / "glue", train=36, validation=40)
    checkpoint = small_minilm(folder / "checkpoint", layers=2, dropout=0.0)
    profile = tiny_profile(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        # the student's head has a dropout of its own
        patch.setattr(torch.nn.Dropout, "forward", lambda self, states: states)
        distil("sst2", source, profile, runs=folder / "one")
    command = ["-m", "shared_stages", "distil", "--task", "sst2", "--source", source]
    command += ["--output", folder / "out", "--runs", folder / "two"]
    environment = {
        "PYTHONPATH": str(Path(__file__).parent),
        "TINY_CHECKPOINT": str(checkpoint),
        "TINY_WITHOUT_DROPOUT": "1",
        "KVLIB_PROFILE": "tiny",
    }
    launch = [*ACCELERATE, EXAMPLES / "two_processes.yaml", "--main_process_port", "0", *command]
    code, out, err = finish(launch, environment)
    assert code == 0, err
    return folder, source, profile, out


def test_command_line_in_two_processes(two_runs):
    folder, *_, printed = two_runs
    assert printed.count("distilled student with bottleneck") == 1
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["machine"].endswith("2 processes")
    assert (folder / "out" / "student" / "model.safetensors").is_file()
    assert not [path for path in (folder / "two").iterdir() if path.name.endswith((".temporary", ".training"))]


@linux_only
def test_no_process_is_left(two_runs):
    assert not subprocess.run(["pgrep", "-f", str(two_runs[0])], capture_output=True, check=False).stdout


def test_two_processes_find_what_one_does(two_runs):
    """32 rows in full batches of 8, no dropout: what is left between the two is rounding."""
    folder, source, profile, _ = two_runs
    one, two = finished_stages(folder / "one"), finished_stages(folder / "two")
    assert one.keys() == two.keys()
    for found, processes in ((one, 1), (two, 2)):
        assert {json.loads((path / "record.json").read_text())["processes"] for path in found.values()} == {
            processes
        }
    experiments = [Experiment("sst2", source, profile, runs=folder / runs) for runs in ("one", "two")]
    for stage in ("teacher", "distilbert", "bottleneck"):
        expected, logits = (
            predict_logits(experiment.model(stage), experiment.validation["validation"]).numpy()
            for experiment in experiments
        )
        assert (expected.argmax(1) == logits.argmax(1)).all()
        assert np.abs(expected - logits).max() < TOLERANCE * np.ptp(expected), stage
        history, other = (pd.read_csv(found[stage] / "history.csv") for found in (one, two))
        assert history["accuracy"].tolist() == other["accuracy"].tolist()
    expected, logits = (
        load_file(next((folder / runs).glob("sst2-logits-*")))["logits"] for runs in ("one", "two")
    )
    # each row's are nearer to its own than the rows are to one another: the order is the same
    difference = np.abs(expected - logits).max()
    assert difference < TOLERANCE * np.ptp(expected)
    assert difference < np.abs(expected - np.roll(expected, 1, axis=0)).max() / 10


def test_two_processes_draw_the_keys_of_one(two_runs):
    folder, *_ = two_runs
    for stage in ("undistilled", "bottleneck"):
        one, two = (
            load_file(finished_stages(folder / runs)[stage] / "model" / "model.safetensors")
            for runs in ("one", "two")
        )
        for name in ("mean", "std", "keys"):
            expected, found = one[f"bottleneck.{name}"], two[f"bottleneck.{name}"]
            # one flipped assignment would move a key by more (1e-6 was found)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_two_machines_meet(tmp_path):
    """The example for two machines, both of them this one."""
    script = tmp_path / "meet.py"
    script.write_text(
        # the one module of the library, without the rest, which takes longest to import
        f"import runpy\nstate = runpy.run_path({str(MACHINE)!r})['process_state']()\n"
        "state.wait_for_everyone()\n"
        "print(f'process {state.process_index} of {state.num_processes}')\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = [*ACCELERATE, EXAMPLES / "two_machines.yaml", "--main_process_ip", "127.0.0.1"]
    with ThreadPoolExecutor(2) as machines:
        printed = list(
            machines.map(
                lambda rank: finish([*meet, "--main_process_port", port, "--machine_rank", rank, script]), (0, 1)
            )
        )
    assert [code for code, _, _ in printed] == [0, 0], printed
    assert [out.splitlines()[-1] for _, out, _ in printed] == ["process 0 of 2", "process 1 of 2"]
