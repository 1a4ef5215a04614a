import warnings
from pathlib import Path

import pytest
from official_glue import FILES, QUOTED, write_official

from kvlib import TASKS, load_glue
from kvlib.recipe.submission import check_test_splits

SHARED = Path(__file__).resolve().parents[2] / "shared" / "glue_official"
ROWS = {"mnli": (3, 3, 3, 2, 2), "cola": (3, 2, 2)}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("glue_data"))


def load(task, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_glue(task, folder)


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_gives_the_hubs_columns_and_label_numbers(task, official):
    spec, data = TASKS[task], load(task, official)
    assert {name: len(split) for name, split in data.items()} == dict(
        zip(spec.splits, ROWS.get(task, (2, 2, 2)), strict=True)
    )
    for name, split in data.items():
        assert tuple(split.column_names) == spec.columns
        if name in spec.test:
            assert set(split["label"][:]) == {-1}
            assert split["idx"][:] == [0, 1]
    train = data["train"]
    if not spec.is_regression:
        assert tuple(train.features["label"].names) == spec.label_names
        assert set(train["label"][:]) == set(range(spec.num_labels))
    assert any(QUOTED in train[column][:] for column in spec.text_columns) or task == "cola"


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("cola", {"sentence": 'The "dog barked.', "label": 0, "idx": 1}),
        ("sst2", {"sentence": "a fine film ", "label": 1, "idx": 1}),
        ("mrpc", {"sentence1": "A.", "sentence2": "B.", "label": 0, "idx": 1}),
        ("stsb", {"sentence1": "C.", "sentence2": "D.", "label": 0.25, "idx": 1}),
        # the broken row before it keeps its number, as on the hub
        ("qqp", {"question1": QUOTED, "question2": "When?", "label": 0, "idx": 2}),
        ("qnli", {"question": "When?", "sentence": "Here.", "label": 1, "idx": 1}),
        ("rte", {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 1}),
        ("mnli", {"premise": QUOTED, "hypothesis": "neutral.", "label": 1, "idx": 1}),
    ],
)
def test_second_row_is_the_files_second_row(task, row, official):
    assert load(task, official)["train"][1] == row


def test_broken_rows_of_qqp_are_named_and_counted(official):
    with pytest.warns(UserWarning) as caught:
        load_glue("qqp", official)
    messages = [str(warning.message) for warning in caught]
    assert sum("QQP/train.tsv: 1 broken rows left out (line 3)" in message for message in messages) == 1
    assert sum("is a part: 2 of GLUE's 363846 rows" in message for message in messages) == 1


def test_a_row_of_mnli_with_a_tab_too_many_is_left_out_and_named(tmp_path):
    lines = FILES["mnli"][1]["dev_matched"]
    folder = write_official(tmp_path, mnli__dev_matched=[*lines[:3], lines[3].replace("\tB.", "\tB.\tand more")])
    with pytest.warns(UserWarning) as caught:
        data = load_glue("mnli", folder)
    assert data["validation_matched"]["idx"][:] == [0, 1]
    assert any("dev_matched.tsv: 1 broken rows left out (line 4)" in str(one.message) for one in caught)


def test_files_with_nothing_but_a_header_are_refused(tmp_path):
    for task in ("qqp", "stsb"):
        folder = write_official(tmp_path / task, **{f"{task}__dev": FILES[task][1]["dev"][:1]})
        with pytest.raises(ValueError, match=r"dev.tsv.* has no rows"):
            load(task, folder)


def test_windows_line_ends_and_blank_last_lines_change_nothing(tmp_path, official):
    folder = write_official(tmp_path)
    for path in folder.rglob("*.tsv"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    for task in TASKS:
        assert {n: split.to_list() for n, split in load(task, folder).items()} == {
            n: split.to_list() for n, split in load(task, official).items()
        }


def test_a_broken_row_elsewhere_is_refused_with_its_line(tmp_path):
    folder = write_official(tmp_path, rte__train=[*FILES["rte"][1]["train"], "2\tonly one"])
    with pytest.raises(ValueError, match=r"RTE/train.tsv: line 4 has 2 fields, expected 4"):
        load_glue("rte", folder)


def test_unknown_label_names_the_line(tmp_path):
    folder = write_official(tmp_path, rte__train=["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tmaybe"])
    with pytest.raises(
        ValueError, match=r"RTE/train.tsv: line 2 has label 'maybe', expected one of 0 \(entailment"
    ):
        load_glue("rte", folder)


def test_missing_texts_are_counted_but_stay(tmp_path):
    folder = write_official(tmp_path, sst2__train=["sentence\tlabel", " \t1", "a film\t0"])
    with pytest.warns(UserWarning, match=r"SST-2/train.tsv: 1 rows lack a text, the first in line 2"):
        assert len(load_glue("sst2", folder)["train"]) == 2


def test_splits_that_are_there_are_loaded_and_none_is_an_error(tmp_path):
    folder = write_official(tmp_path)
    (folder / "RTE" / "train.tsv").unlink()
    assert list(load("rte", folder)) == ["validation", "test"]
    for path in (folder / "RTE").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(FileNotFoundError, match=r"RTE has no train.tsv, dev.tsv …, found dev.txt, test.txt"):
        load("rte", folder)


@pytest.mark.parametrize("task", TASKS)
def test_submit_takes_the_test_splits(task, official):
    assert list(check_test_splits(load(task, official), task)) == list(TASKS[task].test)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the official files in ../shared/glue_official")
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("cola", {"train": 8551, "validation": 1043}),
        ("rte", {"train": 2490, "validation": 277}),
        ("qnli", {"validation": 5463}),
    ],
)
def test_the_real_official_files_load_with_every_row(task, rows):
    with warnings.catch_warnings():
        # complete files are not said to be parts
        warnings.simplefilter("error", UserWarning)
        data = load_glue(task, SHARED)
    assert {name: len(split) for name, split in data.items()} == rows
