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


def test_rows_of_mnli_may_be_wider_than_the_header(tmp_path):
    lines = FILES["mnli"][1]["dev_matched"]
    wider = [lines[0], lines[1].replace("\tneutral\tneutral\t\t\t", "\tneutral\tneutral\t\t\t\t"), *lines[2:]]
    data = load("mnli", write_official(tmp_path, mnli__dev_matched=wider))
    assert (
        data["validation_matched"].to_list()
        == load("mnli", write_official(tmp_path))["validation_matched"].to_list()
    )


def test_a_broken_row_elsewhere_is_refused_with_its_line(tmp_path):
    folder = write_official(tmp_path, rte__train=[*FILES["rte"][1]["train"], "2\tonly one"])
    with pytest.raises(ValueError, match=r"RTE/train.tsv: line 4 has 2 fields, the header has 4"):
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
