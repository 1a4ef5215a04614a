import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from kvlib import CustomDataset, compute_metrics, load_task, load_tokenizer
from kvlib.sources.own_data import describe_data

NAMES = ("awful", "fair", "fine", "good", "great")


def rows(count=60, names=NAMES):
    stars = [names[n % len(names)] for n in range(count)]
    return pd.DataFrame({"review": [f"number {n} was {name}" for n, name in enumerate(stars)], "stars": stars})


def load(frame, **options):
    return load_task(frame, **({"text": "review", "label": "stars"} | options))


def test_every_source_gives_the_same_task(tmp_path):
    frame = rows()
    paths = [tmp_path / f"reviews.{suffix}" for suffix in ("csv", "tsv", "jsonl", "parquet")]
    frame.to_csv(paths[0], index=False)
    frame.to_csv(paths[1], index=False, sep="\t")
    frame.to_json(paths[2], orient="records", lines=True)
    frame.to_parquet(paths[3])
    Dataset.from_pandas(frame).save_to_disk(tmp_path / "folder")
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    frame[:25].to_csv(first, index=False)
    frame[25:].to_csv(second, index=False)
    task, data = load(frame)
    assert (task.name, task.label_names, task.text_columns) == ("task", NAMES, ("text",))
    for source in (*paths, tmp_path / "folder", [first, second], Dataset.from_pandas(frame)):
        other, found = load(source if not hasattr(source, "suffix") else str(source))
        assert other.label_names == NAMES
        assert {name: split.to_list() for name, split in found.items()} == {
            name: split.to_list() for name, split in data.items()
        }
    assert load(paths[0])[0].name == "reviews"


def test_held_out_rows_are_seeded_stratified_and_share_no_text():
    frame = pd.concat([rows(50), rows(50).assign(review=lambda f: f["review"].str.upper())], ignore_index=True)
    _, data = load(frame, seed=1)
    texts = [{text.lower() for text in split["text"]} for split in data.values()]
    assert not texts[0] & texts[1]
    assert sum(map(len, data.values())) == 100
    assert np.bincount(data["validation"]["label"][:]).tolist() == [4] * 5
    assert load(frame, seed=1)[1]["validation"]["text"][:] == data["validation"]["text"][:]
    assert load(frame, seed=2)[1]["validation"]["text"][:] != data["validation"]["text"][:]


def test_a_validation_file_is_taken_as_it_is_and_shared_texts_are_told():
    with pytest.warns(UserWarning, match="10 validation texts stand among the training texts"):
        _, data = load(rows(), validation=rows(10))
    assert [len(split) for split in data.values()] == [60, 10]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1", "10", "2"] * 20, ("1", "2", "10")),
        ([1, 0, 1] * 20, ("0", "1")),
        ([True, False, True] * 20, ("False", "True")),
        ([" b", "a", "b "] * 20, ("a", "b")),
        ([0.5, 1.0, 2.25] * 20, ()),
        (["0,5", "1", "2,25"] * 20, ()),
        (["1", "1.0", "2"] * 20, ("1", "2")),
        (["01067", "1067", "1E2"] * 20, ("01067", "1067", "1E2")),
        ([10**20, 10**20 + 1] * 30, (str(10**20), str(10**20 + 1))),
        (["0.5", "-1", "2.25"] * 20, ()),
    ],
)
def test_classes_and_numbers_are_told_apart(labels, names):
    task, data = load(rows().assign(stars=labels))
    assert task.label_names == names
    assert task.metrics == (("macro_f1", "accuracy", "mcc") if names else ("pearson", "spearman"))
    found = [label for split in data.values() for label in split["label"]]
    if names:
        assert sorted(found) == sorted(names.index(str(label).strip().removesuffix(".0")) for label in labels)
    else:
        assert sorted(found) == sorted(float(str(label).replace(",", ".")) for label in labels)


def test_many_whole_numbers_must_be_named():
    frame = rows().assign(stars=range(60))
    with pytest.raises(
        ValueError, match=r"60 different whole numbers: say whether .*--regression.*--no-regression"
    ):
        load(frame)
    assert load(frame, regression=True)[0].is_regression
    ages = rows(300).assign(stars=[n % 30 for n in range(300)])
    assert load(ages, regression=False)[0].num_labels == 30
    with pytest.raises(ValueError, match=r"row 0 has 'stars' 'awful', expected a number"):
        load(rows(), regression=True)


def test_declared_classes_keep_their_order():
    features = Dataset.from_pandas(rows()).cast_column("stars", ClassLabel(names=NAMES[::-1]))
    assert load(features)[0].label_names == NAMES[::-1]
    numbered = rows().assign(stars=pd.Categorical([5 - n % 5 for n in range(60)], categories=[5, 4, 3, 2, 1]))
    task, data = load(numbered)
    assert task.label_names == ("5", "4", "3", "2", "1")
    assert {row["label"] for row in data["train"] if row["text"].endswith("awful")} == {0}
    split = DatasetDict(train=features, validation=features.select(range(10)), test=features)
    with pytest.warns(UserWarning, match="stand among"):
        assert list(load(split)[1]) == ["train", "validation"]


def test_pairs_keep_both_texts(tokenizer):
    frame = rows().assign(answer=[f"answer {n}" for n in range(60)])
    task, data = load(frame, text_pair="answer")
    assert task.text_columns == ("text", "text_pair")
    dataset = CustomDataset(data["train"], tokenizer, task)
    assert set(dataset[0]["token_type_ids"]) == {0, 1}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows().rename(columns={"review": "text"}), r"no column 'review': expected .*, found text, stars"),
        (rows().assign(review=["", *rows()["review"][1:]]), r"1 rows have no text in column 'review' \(row 0\)"),
        (rows().assign(stars=[None, *rows()["stars"][1:]]), r"1 rows have no 'stars', the first in row 0"),
        (rows().assign(stars="fine"), r"'stars' is 'fine' in every row: expected two classes or more"),
        (rows().assign(stars=rows()["review"]), r"60 different values in 60 rows: these are no classes"),
        (rows(61).assign(stars=[*rows()["stars"], "odd"]), r"61 different texts, of 'odd' 1: expected 30 or more"),
        (rows(4, ("a", "b")), r"4 different texts, of 'a' 2: expected 10 or more"),
        (rows().head(0), r"the data has no rows"),
        (rows().assign(review=range(60)), r"column 'review' holds int64, expected texts: turn them into strings"),
        (rows().set_axis(["review", "review"], axis=1).assign(stars=1), r"has a column twice"),
        (rows().assign(stars=0.5), r"'stars' is 0.5 in every row: there is nothing to predict"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_learned_from_is_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        load(frame)


def test_a_class_missing_from_validation_and_a_rare_one(tmp_path):
    with pytest.raises(ValueError, match="no validation row has 'stars' 'good', 'great'"):
        load(rows(), validation=rows(9, NAMES[:3]).assign(review=lambda f: f["review"] + "!"))
    with pytest.warns(UserWarning, match=r"rare classes, with fewer than 10 training rows: 'awful' \(8\)$"):
        load(rows(100).drop(index=range(50, 100, 5)))


def test_wrong_column_in_a_file_of_one_column_tells_the_separator(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("review:stars\nfine:1\n")
    with pytest.raises(
        ValueError, match=r"separated at ',', has no column 'review', 'stars': .* found review:stars"
    ):
        load(path)


def test_no_such_file_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file nobody/nothing, and the hub gives no data set"):
        load("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"is a folder, but none that datasets' save_to_disk wrote"):
        load(tmp_path)


def test_description_counts_what_matters():
    frame = rows().assign(review=lambda f: ["word " * 40, *f["review"][1:]])
    frame.loc[1, "review"] = frame.loc[6, "review"]
    task, data = load(frame)
    text = describe_data(task, data, load_tokenizer(), 20)
    assert "5 classes" in text
    assert "rows: 48 train, 12 validation" in text
    assert text.count("awful ") == 1
    cut = sum(int(line.split(";")[1].split()[0]) for line in text.splitlines() if "rows are cut at 20" in line)
    assert cut == 1
    assert sum(int(part.split()[0]) for part in text.split("equal texts: ")[1].split("\n")[0].split(", ")[:2]) == 1
    assert text.splitlines()[-1].startswith("  ")
    scored, numbers = load(rows().assign(stars=[0.5, 1.0, 2.25] * 20))
    regression = describe_data(scored, numbers, load_tokenizer())
    assert "a number to predict" in regression


def test_metrics_of_own_tasks_weigh_every_class_alike():
    task, _ = load(rows())
    labels = np.array([0, 0, 0, 0, 1, 2, 3, 4])
    scores = compute_metrics(task, np.zeros(8, dtype=int), labels)
    assert set(scores) == {"accuracy", "macro_f1", "mcc"}
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3) / 5)
    two, _ = load(rows(60, ("no", "yes")))
    # the class 0 has F1 0, the class 1 2/3
    assert compute_metrics(two, np.array([1, 1]), np.array([0, 1]))["macro_f1"] == pytest.approx(1 / 3)
    number, _ = load(rows().assign(stars=[-1.0, 0.5, 2.0] * 20))
    assert compute_metrics(number, np.array([-1.0, 2.0]), np.array([-1.0, 2.0]))["pearson"] == pytest.approx(1)


def test_a_text_that_stands_very_often_neither_fills_nor_empties_validation():
    frame = rows(1000, ("no", "yes")).assign(review=lambda f: f["review"].where(f.index >= 400, "thanks"))
    for seed in range(3):
        _, data = load(frame, seed=seed)
        assert len(data["validation"]) == 120  # a fifth of the 600 other texts
        assert "thanks" not in data["validation"]["text"][:]


def test_texts_that_differ_in_spaces_are_equal():
    frame = rows(80, ("no", "yes")).assign(review=lambda f: [f"text {n // 2}" + " " * (n % 2) for n in range(80)])
    _, data = load(frame)
    texts = [{text.strip() for text in split["text"]} for split in data.values()]
    assert not texts[0] & texts[1]
    assert len(texts[1]) == 8


def test_validation_of_several_splits_and_declared_classes_are_not_guessed_at():
    split = Dataset.from_pandas(rows())
    with pytest.raises(ValueError, match=r"the validation data has the splits train, other: pass one of them"):
        load(rows(), validation=DatasetDict(train=split, other=split))
    with pytest.raises(ValueError, match=r"'stars' holds declared classes, not numbers to predict"):
        load(split.cast_column("stars", ClassLabel(names=NAMES)), regression=True)
    with pytest.raises(
        ValueError, match=r"text, text_pair and label are review, stars, review: expected different"
    ):
        load(rows(), text_pair="review")


def test_files_with_other_columns_and_paths_with_spaces_are_named(tmp_path):
    first, second = tmp_path / "a file.csv", tmp_path / "b.csv"
    rows().to_csv(first, index=False)
    rows().rename(columns={"review": "text"}).to_csv(second, index=False)
    with pytest.raises(
        ValueError, match=r"b.csv has no column 'review': expected review, stars, found text, stars"
    ):
        load([first, second])
    first.write_bytes(first.read_bytes().decode().encode("utf-16"))
    with pytest.raises(ValueError, match=r"iconv -f UTF-16 -t UTF-8 '.*a file.csv' > new.csv"):
        load(first)
