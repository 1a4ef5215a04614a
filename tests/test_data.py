import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kvlib import TASKS, CustomDataset, DistilBERTwithBottleNeck, compute_metrics, hold_out, load_glue
from kvlib.sources.glue import MINI_GLUE
from kvlib.teacher import predict_states

SHARED = Path(__file__).resolve().parents[2] / "shared" / "glue"
ROWS = "sentence\tlabel\tidx\nA fine film.\t1\t0\nA dull film.\t0\t1\n"


@pytest.fixture
def folder(tmp_path):
    """A well-formed folder of SST-2 that each test spoils in one way."""
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text(ROWS, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_mini_glue_has_the_hubs_columns_and_label_numbers(task):
    data = load_glue(task)
    spec = TASKS[task]
    assert list(data) == ["train", *spec.validation, *spec.test]
    for name, split in data.items():
        assert tuple(split.column_names) == spec.columns
        assert len(set(split["idx"][:])) == len(split)
        labels = set(split["label"][:])
        if name in spec.test:
            assert labels == {-1}
        elif not spec.is_regression:
            assert labels == set(range(spec.num_labels))
            assert tuple(split.features["label"].names) == spec.label_names


def test_unknown_task_names_the_eight():
    with pytest.raises(ValueError, match="unknown task 'nonsense'") as error:
        load_glue("nonsense")
    assert all(task in str(error.value) for task in TASKS)


def test_missing_folder_names_it_and_the_ways_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*sst2.*'mini', 'hub'"):
        load_glue("sst2", tmp_path)


def test_missing_split_says_what_is_there(folder):
    (folder / "sst2" / "validation.tsv").rename(folder / "sst2" / "dev.tsv")
    with pytest.raises(FileNotFoundError, match=r"no split 'validation'.*found dev.tsv, train.tsv"):
        load_glue("sst2", folder)


def test_split_in_two_formats_is_refused(folder):
    (folder / "sst2" / "train.csv").write_text("sentence,label\nA film.,1\n")
    with pytest.raises(ValueError, match="more than once"):
        load_glue("sst2", folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\tidx\nA film.\t1\t0\n", r"no column 'sentence': expected sentence, label, found text"),
        ("sentence\tlabel\tidx\nA film.\t2\t0\n", r"line 2 has label '2', expected one of 0 \(negative\), 1"),
        ("sentence\tlabel\tidx\nA film.\tgood\t0\n", r"line 2 has label 'good'"),
        ("sentence\tlabel\tidx\nA film.\t-1\t0\n", r"line 2 has label '-1'"),
        ("sentence\tlabel\tidx\nA film.\t1\t0\n \t1\t1\n", r"1 rows have no text in column 'sentence' \(line 3\)"),
        ("sentence\tlabel\tidx\nA film.\t1\n", r"line 2 has 2 fields, expected 3"),
        (
            "sentence\tlabel\tidx\nA film.\t1\t7\nA play.\t1\t7\n",
            r"line 3 has idx '7', expected whole numbers, each once",
        ),
        (
            "sentence\tlabel\tidx\nA film.\t1\t0.2\nA play.\t1\t0.7\n",
            r"line 2 has idx '0.2', expected whole numbers",
        ),
        (
            "sentence\tlabel\tidx\nA film.\t1\t0\nA play.\t1\tone\n",
            r"line 3 has idx 'one', expected whole numbers",
        ),
        ("sentence\tlabel\tidx\n", r"it has no rows"),
    ],
)
def test_bad_rows_are_named(folder, text, message):
    (folder / "sst2" / "train.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_glue("sst2", folder)


def test_wrong_encoding_names_the_byte_and_the_way_out(folder):
    (folder / "sst2" / "train.tsv").write_bytes(ROWS.replace("fine", "café").encode("latin-1"))
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 24 is 0xe9\).*iconv"):
        load_glue("sst2", folder)


def test_unreadable_files_are_errors(folder):
    (folder / "sst2" / "train.tsv").unlink()
    (folder / "sst2" / "train.jsonl").write_text('{"sentence": "A film."\n')
    with pytest.raises(ValueError, match=r"train.jsonl: line 1 is not JSON"):
        load_glue("sst2", folder)
    (folder / "sst2" / "train.jsonl").rename(folder / "sst2" / "train.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet"):
        load_glue("sst2", folder)


def test_wrong_score_for_regression(tmp_path):
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "train.tsv").write_text("sentence1\tsentence2\tlabel\tidx\nA.\tB.\t5.5\t0\n")
    (tmp_path / "stsb" / "validation.tsv").write_text("sentence1\tsentence2\tlabel\tidx\nA.\tB.\t5.0\t0\n")
    with pytest.raises(ValueError, match=r"label '5.5', expected a number from 0 to 5"):
        load_glue("stsb", tmp_path)


def test_no_access_to_the_hub_names_the_two_ways_out():
    # notebook_settings puts the hub's client in offline mode
    with pytest.raises(FileNotFoundError, match=r"nyu-mll/glue \(rte\).*source='mini'.*source=FOLDER"):
        load_glue("rte", "hub")


def test_every_format_loads_the_same_rows(folder, tmp_path):
    rows = [{"sentence": 'He said "no, NA', "label": 1, "idx": 0}, {"sentence": "None", "label": 0, "idx": 1}]
    here = folder / "sst2"
    (here / "train.tsv").write_text('sentence\tlabel\tidx\nHe said "no, NA\t1\t0\nNone\t0\t1\n')
    loaded = [load_glue("sst2", folder)["train"]]
    (here / "train.tsv").unlink()
    with (here / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    loaded.append(load_glue("sst2", folder)["train"])
    (here / "train.csv").unlink()
    (here / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded.append(load_glue("sst2", folder)["train"])
    (here / "train.jsonl").unlink()
    loaded[0].to_pandas().to_parquet(here / "train.parquet")
    loaded.append(load_glue("sst2", folder)["train"])
    assert all(split.to_list() == rows for split in loaded)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_separators_inside_a_sentence_do_not_end_a_line_of_jsonl(folder, line_end):
    # JSON need not escape them, and str.splitlines() splits at each
    rows = [
        {"sentence": "A fine\u2028film.", "label": 1, "idx": 0},
        {"sentence": "A dull\u0085play\u2029.", "label": 0, "idx": 1},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "sst2" / "train.tsv").unlink()
    (folder / "sst2" / "train.jsonl").write_bytes((line_end.join(lines) + line_end).encode())
    assert load_glue("sst2", folder)["train"].to_list() == rows


def test_idx_and_test_labels_may_be_missing(folder):
    (folder / "sst2" / "test.tsv").write_text("sentence\nA film.\nA play.\n")
    test = load_glue("sst2", folder)["test"]
    assert test["idx"][:] == [0, 1]
    assert test["label"][:] == [-1, -1]


def test_a_task_may_be_a_name_or_a_task(mrpc, tokenizer):
    task = TASKS["mrpc"]
    assert load_glue(task)["train"].to_list() == mrpc["train"].to_list()
    split = mrpc["train"].select(range(4))
    assert CustomDataset(split, tokenizer, task).task is CustomDataset(split, tokenizer, "mrpc").task is task
    logits, labels = np.eye(4, 2), np.array(split["label"][:])
    assert compute_metrics(task, logits, labels) == compute_metrics("mrpc", logits, labels)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs a folder of real GLUE in ../shared/glue")
@pytest.mark.parametrize(
    ("task", "train", "validation"),
    [("cola", 8551, 1043), ("sst2", 67349, 872), ("rte", 2490, 277), ("qnli", 2191, 5463), ("mnli", 3297, 9815)],
)
def test_real_glue_loads_with_every_row(task, train, validation):
    data = load_glue(task, SHARED)
    assert (len(data["train"]), len(data[TASKS[task].validation[0]])) == (train, validation)


def test_hold_out_keeps_class_shares_and_loses_no_row(mrpc):
    train, held_out = hold_out(mrpc["train"], fraction=0.1, seed=3)
    assert sorted(train["idx"][:] + held_out["idx"][:]) == sorted(mrpc["train"]["idx"][:])
    shares = [sum(part["label"][:]) / len(part) for part in (train, held_out)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)  # one row of 130 is 0.008


def test_custom_dataset_pads_per_batch_and_keeps_segments_and_idx(mrpc, tokenizer):
    dataset = CustomDataset(mrpc["train"], tokenizer, "mrpc")
    rows = [0, 5, 9]
    batch = dataset.collate([dataset[row] for row in rows])
    assert batch["input_ids"].shape == (3, dataset.lengths[rows].max())
    assert batch["idx"].tolist() == [mrpc["train"]["idx"][row] for row in rows]
    assert batch["labels"].dtype == torch.int64
    for row, ids, segments, mask in zip(
        rows, batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], strict=True
    ):
        alone = tokenizer(mrpc["train"][row]["sentence1"], mrpc["train"][row]["sentence2"])
        real = mask.bool()
        assert ids[real].tolist() == alone["input_ids"]
        assert segments[real].tolist() == alone["token_type_ids"]
        assert set(segments[real].tolist()) == {0, 1}
        assert (ids[~real] == tokenizer.pad_token_id).all()


def test_long_pairs_lose_tokens_from_the_longer_part(mrpc, tokenizer):
    split = mrpc["train"].select([0]).map(lambda row: {"sentence1": "dog " * 50, "sentence2": "one small cat"})
    dataset = CustomDataset(split, tokenizer, "mrpc", max_length=16)
    words = tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"])
    assert len(words) == 16
    assert words[-4:] == ["one", "small", "cat", "[SEP]"]


def test_teacher_logits_are_checked_and_follow_their_rows(mrpc, tokenizer):
    split = mrpc["train"].select(range(4))
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    dataset = CustomDataset(split, tokenizer, "mrpc", teacher_logits=logits)
    batch = dataset.collate([dataset[row] for row in (2, 0)])
    assert torch.equal(batch["teacher_logits"], logits[[2, 0]])
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(4, 2\)"):
        CustomDataset(split, tokenizer, "mrpc", teacher_logits=logits[:3])
    with pytest.raises(ValueError, match="NaN"):
        CustomDataset(split, tokenizer, "mrpc", teacher_logits=logits * torch.nan)
    assert "teacher_logits" not in CustomDataset(split, tokenizer, "mrpc")[0]


def test_teacher_states_are_checked_and_follow_their_rows(mrpc, tokenizer):
    split = mrpc["train"].select(range(4))
    plain = CustomDataset(split, tokenizer, "mrpc")
    lengths = plain.lengths
    assert len(set(lengths.tolist())) > 1
    # each token's state says whose it is
    states = torch.tensor([[row, token] for row in range(4) for token in range(lengths[row])], dtype=torch.float16)
    for wrong in (states[:-1], states.repeat(2, 1)):
        with pytest.raises(ValueError, match=rf"has {len(wrong)} rows, expected .* {len(states)} real tokens"):
            CustomDataset(split, tokenizer, "mrpc", teacher_states=wrong)
    assert "teacher_states" not in plain.collate([plain[0]])
    dataset = CustomDataset(split, tokenizer, "mrpc", teacher_states=states)
    for rows in ([2, 0, 3], [1], [0, 1, 2, 3]):
        batch = dataset.collate([dataset[row] for row in rows])
        expected = [[row, token] for row in rows for token in range(lengths[row])]
        assert batch["teacher_states"].tolist() == expected
        assert batch["teacher_states"].dtype == torch.float16
        assert int(batch["attention_mask"].sum()) == len(expected)


def test_collated_states_stand_beside_the_tokens_that_a_student_encodes(mrpc, tokenizer, pretrained):
    split = mrpc["train"].select(range(8))
    student = DistilBERTwithBottleNeck.from_teacher(pretrained, num_layers=1).eval()
    # as if the student were its own teacher
    states = predict_states(student, CustomDataset(split, tokenizer, "mrpc"), batch_size=3)
    dataset = CustomDataset(split, tokenizer, "mrpc", teacher_states=states)
    batch = dataset.collate([dataset[row] for row in (5, 0, 7)])
    with torch.inference_mode():
        states, *_ = student.encode(batch["input_ids"], batch["attention_mask"])
        # tokenised by hand, one row at a time
        alone = [student.encode(torch.tensor([dataset[row]["input_ids"]]))[0] for row in (5, 0, 7)]
    # float16 rounds by at most 2**-11 of a number
    torch.testing.assert_close(batch["teacher_states"].float(), states, atol=1e-5, rtol=2**-10)
    torch.testing.assert_close(batch["teacher_states"].float(), torch.cat(alone), atol=1e-5, rtol=2**-10)


def test_fingerprint_changes_with_order_text_and_label(mrpc, tokenizer):
    split = mrpc["train"].select(range(4))
    prints = {
        CustomDataset(variant, tokenizer, "mrpc", max_length=length).fingerprint
        for variant, length in (
            (split, 128),
            (split, 12),
            (split.select([1, 0, 2, 3]), 128),
            (split.map(lambda row: {"label": 1 - row["label"]}), 128),
        )
    }
    assert len(prints) == 4


def test_mini_glue_lies_where_the_package_looks():
    assert MINI_GLUE.is_dir()


@pytest.mark.parametrize("length", [0, 1, 4])
def test_lengths_without_room_for_a_text_are_refused(length, mrpc, tokenizer):
    with pytest.raises(
        ValueError, match=rf"max_length is {length}, expected at least 5: 3 special tokens and a word"
    ):
        CustomDataset(mrpc["train"].select([0]), tokenizer, "mrpc", max_length=length)


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_class_names_are_labels_too(folder, suffix):
    rows = [{"sentence": "A fine film.", "label": "positive"}, {"sentence": "A dull film.", "label": "negative"}]
    (folder / "sst2" / "train.tsv").unlink()
    path, separator = folder / "sst2" / f"train.{suffix}", "\t" if suffix == "tsv" else ","
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [separator.join(row.values()) for row in rows]
        path.write_text("\n".join([separator.join(rows[0]), *lines]))
    assert load_glue("sst2", folder)["train"]["label"][:] == [1, 0]


def test_columns_that_are_found_are_those_of_the_file(folder):
    (folder / "sst2" / "train.tsv").write_text("text\tlabel\nA film.\t1\n")
    with pytest.raises(ValueError, match=r"no column 'sentence': expected sentence, label, found text, label$"):
        load_glue("sst2", folder)
