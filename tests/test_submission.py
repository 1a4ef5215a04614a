import copy
import os
import re
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from shared_stages import shared_recipe, small_minilm

from kvlib import TASKS, BERTbase, CustomDataset, DistilBERTwithBottleNeck, distil, load_glue, load_tokenizer
from kvlib.recipe.command_line import main
from kvlib.recipe.submission import (
    FILES,
    OFFICIAL_ROWS,
    check_student,
    check_submission,
    check_test_splits,
    find_students,
    predictions,
    write_submission,
)
from kvlib.teacher import predict_logits

ROWS = 7
WORDS = {"mnli": "entailment|neutral|contradiction", "rte": "entailment|not_entailment"}
WORDS |= {"qnli": WORDS["rte"], "stsb": r"[0-5]\.[0-9]{3}"}
EVERY_FILE = {file for files in FILES.values() for file in files.values()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A GLUE folder of one's own: a few rows a task, those of the test splits in a shuffled order."""
    folder = tmp_path_factory.mktemp("glue")
    for task in TASKS:
        (folder / task).mkdir()
        for name, split in load_glue(task).items():
            frame = split.select(range(ROWS)).to_pandas()
            if name.startswith("test"):
                frame = frame.sample(frac=1, random_state=1)
                assert frame["idx"].tolist() != list(range(ROWS))
            frame.to_csv(folder / task / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small_minilm(tmp_path_factory.mktemp("checkpoint"), layers=1)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(str(checkpoint))


@pytest.fixture(scope="module")
def students(tmp_path_factory, source, checkpoint, tokenizer):
    """An untrained student a task, one layer, CoLA's with a bottleneck; predictions differ from row to row."""
    folder = tmp_path_factory.mktemp("students")
    for task, spec in TASKS.items():
        teacher = BERTbase.for_task(task, str(checkpoint))
        student = DistilBERTwithBottleNeck.from_teacher(teacher, num_layers=1)
        rows = CustomDataset(load_glue(task, source)[spec.test[0]], tokenizer, task)
        if task == "cola":
            student = student.discretize(rows, num_codebooks=4, codebook_size=8)
            torch.nn.init.normal_(student.bottleneck.values)
        spread_out(student, rows, 2.5 if task == "stsb" else 0.0)
        student.save_pretrained(folder / task / "student")
        tokenizer.save_pretrained(folder / task / "student")
    return folder


@torch.no_grad()
def spread_out(student, rows, centre):
    """Set an untrained head or values so that its logits on `rows` have mean `centre` and standard deviation 2."""
    logits = predict_logits(student, rows)
    factor = 2 / logits.std(0)
    shift = centre - factor * logits.mean(0)
    if student.config.has_bottleneck:
        student.bottleneck.values.copy_(factor * student.bottleneck.values + shift)
    else:
        student.classifier.weight *= factor[:, None]
        student.classifier.bias.copy_(factor * student.classifier.bias + shift)


@pytest.fixture(scope="module")
def written(students, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("submission") / "new"
    rows = {}
    for task in TASKS:
        rows |= write_submission(students / task / "student", load_glue(task, source), task, folder)
    return folder, rows


def one_by_one(students, source, task, split, tokenizer):
    """Logits of a test split by idx, each row alone in its batch."""
    model = DistilBERTwithBottleNeck.from_pretrained(students / task / "student").eval()
    found = {}
    for row in load_glue(task, source)[split]:
        inputs = tokenizer(*(row[column] for column in TASKS[task].text_columns), return_tensors="pt")
        with torch.no_grad():
            found[row["idx"]] = model(**inputs).logits[0]
    return found


def test_nine_of_the_servers_eleven_files():
    assert {task: tuple(files) for task, files in FILES.items()} == {
        name: spec.test for name, spec in TASKS.items()
    }
    assert FILES["mnli"] == {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}
    assert set(OFFICIAL_ROWS) == EVERY_FILE
    server = {"AX", "CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"}
    assert EVERY_FILE | {"WNLI.tsv", "AX.tsv"} == {f"{name}.tsv" for name in server}


def test_every_file_is_what_the_server_reads_byte_by_byte(written):
    folder, rows = written
    assert {path.name for path in folder.iterdir()} == EVERY_FILE
    assert rows == dict.fromkeys(EVERY_FILE, ROWS)
    for task, files in FILES.items():
        lines = "".join(rf"{index}\t({WORDS.get(task, '0|1')})\n" for index in range(ROWS))
        for file in files.values():
            assert re.fullmatch(rf"index\tprediction\n{lines}".encode(), (folder / file).read_bytes()), file


@pytest.mark.parametrize("task", TASKS)
def test_each_line_is_the_prediction_for_its_own_row(task, written, students, source, tokenizer):
    folder, _ = written
    for split, file in FILES[task].items():
        found = [line.split("\t")[1] for line in (folder / file).read_text().splitlines()[1:]]
        logits = one_by_one(students, source, task, split, tokenizer)
        names = TASKS[task].label_names if task in WORDS else "01"
        for index, prediction in enumerate(found):
            if task == "stsb":
                assert float(prediction) == pytest.approx(min(max(float(logits[index]), 0), 5), abs=2e-3)
            else:
                number = int(logits[index].argmax())
                assert prediction == names[number]
        assert len(set(found)) > 1, "constant predictions would hide a wrong order"


def test_what_distil_writes_is_answered_as_the_experiment_would(tmp_path_factory, tmp_path):
    recipe = shared_recipe(tmp_path_factory)
    distil("sst2", recipe.source, recipe.profile, output=tmp_path / "sst2", runs=recipe.runs)
    arguments = ("--students", tmp_path, "--source", recipe.source, "--output", tmp_path / "out")
    assert main(["submit", *map(str, arguments)]) == 0
    experiment = recipe.experiment()
    test = experiment.tokenize(experiment.data["test"])
    expected = predictions(predict_logits(experiment.model("bottleneck"), test), "sst2")
    lines = (tmp_path / "out" / "SST-2.tsv").read_text().splitlines()[1:]
    assert lines == [f"{index}\t{answer}" for index, answer in enumerate(expected)]


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        ("mnli", torch.eye(3), ["entailment", "neutral", "contradiction"]),
        ("rte", torch.eye(2), ["entailment", "not_entailment"]),
        ("qnli", torch.eye(2), ["entailment", "not_entailment"]),
        *((task, torch.eye(2).flip(0), ["1", "0"]) for task in ("cola", "mrpc", "sst2", "qqp")),
        ("stsb", torch.tensor([[-0.4], [5.2], [2.7184], [5.0]]), ["0.000", "5.000", "2.718", "5.000"]),
    ],
)
def test_label_strings_follow_class_numbers_and_scores_are_cut_off(task, logits, expected):
    assert predictions(logits, task) == expected


def test_logits_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"mnli needs logits of shape \(N, 3\), got \(4, 2\)"):
        predictions(torch.zeros(4, 2), "mnli")
    with pytest.raises(ValueError, match="logits on stsb hold NaN or infinity: distil it again"):
        predictions(torch.tensor([[float("nan")]]), "stsb")


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        ([0, 2, 2], "found 2 where 1 was expected"),
        ([3, 0, 1], "found 3 where 2 was expected"),
        ([1, 2, 3], "found 1 where 0 was expected"),
        ([1, 1, 0], "found 1 where 2 was expected"),
    ],
)
def test_idx_that_is_doubled_or_missing_is_refused(idx, message):
    rows = Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [-1] * 3, "idx": idx})
    with pytest.raises(ValueError, match=f"test split of cola has 3 rows, so its idx must be 0 to 2.*{message}"):
        check_test_splits(DatasetDict({"test": rows}), "cola")


def test_idx_puts_rows_in_order():
    rows = Dataset.from_dict({"sentence": ["b", "c", "a"], "label": [-1] * 3, "idx": [1, 2, 0]})
    assert check_test_splits(DatasetDict({"test": rows}), "cola")["test"]["sentence"][:] == ["a", "b", "c"]


def test_missing_test_split_is_named(students, source, tmp_path):
    data = load_glue("mnli", source)
    del data["test_mismatched"]
    with pytest.raises(
        ValueError, match=r"mnli has no split 'test_mismatched', only train.*add mnli/test_mismatched"
    ):
        write_submission(students / "mnli" / "student", data, "mnli", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("owner", "task"), [("mnli", "rte"), ("sst2", "cola"), ("stsb", "mrpc"), ("rte", "stsb")])
def test_student_of_another_task_is_refused(owner, task, students, source, tmp_path):
    student = students / owner / "student"
    with pytest.raises(ValueError, match=f"numbers its labels .*, but {task} numbers them .*distil --task {task}"):
        write_submission(student, load_glue(task, source), task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_same_labels_but_another_task_is_refused_by_the_record_beside(students, tmp_path):
    (tmp_path / "student").symlink_to(students / "qnli" / "student")
    (tmp_path / "metrics.json").write_text('{"task": "qnli"}')
    check_student(tmp_path / "student", "qnli")
    with pytest.raises(ValueError, match=r"was distilled on qnli: make it with .* --task rte"):
        check_student(tmp_path / "student", "rte")


def test_student_with_a_missing_file_and_no_student_at_all(students, tmp_path):
    student = tmp_path / "rte" / "student"
    student.mkdir(parents=True)
    (student / "config.json").symlink_to(students / "rte" / "student" / "config.json")
    with pytest.raises(FileNotFoundError, match=r"rte.student has no model\.safetensors: make it with"):
        check_submission(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no student: expected .*TASK.student"):
        find_students(tmp_path / "rte")


def test_student_with_truncated_weights_is_refused_before_any_prediction(students, tmp_path):
    shutil.copytree(students / "rte" / "student", tmp_path / "rte" / "student")
    os.truncate(tmp_path / "rte" / "student" / "model.safetensors", 9000)
    with pytest.raises(ValueError, match=r"the weights in .*rte.student are damaged .*: make it with"):
        check_submission(tmp_path)


def test_failed_runs_leave_no_half_file_and_the_old_one_whole(students, source, tmp_path, monkeypatch):
    arguments = (students / "mnli" / "student", load_glue("mnli", source), "mnli", tmp_path)
    (tmp_path / "MNLI-m.tsv").write_text("old\n")
    calls = iter([torch.zeros(ROWS, 3), torch.full((ROWS, 3), float("nan"))])
    with monkeypatch.context() as patch:
        patch.setattr("kvlib.recipe.submission.predict_logits", lambda model, dataset: next(calls))
        with pytest.raises(ValueError, match="NaN"):
            write_submission(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["MNLI-m.tsv"]
    assert (tmp_path / "MNLI-m.tsv").read_text() == "old\n"
    (tmp_path / "MNLI-mm.tsv").mkdir()
    with pytest.raises(OSError, match=r"MNLI-mm\.tsv"):
        write_submission(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    assert (tmp_path / "MNLI-m.tsv").read_text().startswith("index\tprediction\n0\t")


def test_shell_writes_what_stands_and_names_what_is_missing(students, source, written, tmp_path, capsys):
    for task in ("rte", "mnli"):
        (tmp_path / "students" / task).mkdir(parents=True)
        (tmp_path / "students" / task / "student").symlink_to(students / task / "student")
    arguments = ("--students", tmp_path / "students", "--source", source, "--output", tmp_path / "out")
    assert main(["submit", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("MNLI-m.tsv: 7 rows, but the official test split has 9796: not for the server")
    assert [line.split(":")[0].rsplit("/")[-1] for line in lines[:3]] == ["MNLI-m.tsv", "MNLI-mm.tsv", "RTE.tsv"]
    missing = "\n".join(line for line in lines if line.startswith("missing"))
    assert all(file in missing for file in EVERY_FILE - {"MNLI-m.tsv", "MNLI-mm.tsv", "RTE.tsv"})
    assert "RTE" not in missing
    assert lines[-1].startswith("not made here: WNLI.tsv and AX.tsv")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (written[0] / path.name).read_bytes()


def test_shell_refuses_before_it_starts(students, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    out = tmp_path / "out"
    for arguments, message in (
        (("--students", students), "arguments are required: --output"),
        (("--students", tmp_path, "--output", out), "holds no student"),
        (("--students", students, "--output", file), "is a file, expected a folder"),
        (("--students", students, "--output", out, "--source", "nowhere"), "no folder nowhere/mnli"),
        (("--students", students, "--output", out, "--profile", "huge"), "unknown profile 'huge'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["submit", *map(str, arguments)])
        assert end.value.code == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert len(printed.splitlines()) == 1
    assert not out.exists()


def test_texts_are_read_as_far_as_in_training(students, source, tokenizer, tmp_path):
    student, rows = tmp_path / "student", load_glue("stsb", source)
    shutil.copytree(students / "stsb" / "student", student)
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 8
    short.save_pretrained(student)
    write_submission(student, rows, "stsb", tmp_path)
    model, test = DistilBERTwithBottleNeck.from_pretrained(student).eval(), rows["test"].sort("idx")
    expected = [
        predictions(predict_logits(model, CustomDataset(test, tokenizer, "stsb", length)), "stsb")
        for length in (8, 128)
    ]
    assert expected[0] != expected[1]
    found = [line.split("\t")[1] for line in (tmp_path / "STS-B.tsv").read_text().splitlines()[1:]]
    assert found == expected[0]
