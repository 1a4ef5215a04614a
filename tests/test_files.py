import gzip
import json

import pandas as pd
import pytest

from kvlib.sources.files import read_table

CSV = "sentence,label\na fine film,1\na dull film,0\n"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_surplus_fields_are_refused_with_their_line(tmp_path):
    for rows, line in (("good, 0,0\nbad, 1,1\n", 2), ("good,0\nbad, 1,1\n", 3)):
        path = write(tmp_path, "a.csv", f"sentence,label\n{rows}")
        with pytest.raises(ValueError, match=rf"a.csv: line {line} has 3 fields, expected 2 .*in quotation marks"):
            read_table(path)


def test_a_text_that_swallows_rows_is_told(tmp_path):
    path = write(tmp_path, "a.csv", 'sentence,label\n"fine film,1\nbad film,0\nold film",1\n')
    with pytest.warns(UserWarning, match=r"a.csv: 1 rows hold a text of several lines, the first in line 2"):
        assert len(read_table(path)) == 1
    with pytest.raises(
        ValueError, match=r"a.csv: line 2: unexpected end of data; .* each one that opens is closed"
    ):
        read_table(write(tmp_path, "a.csv", 'sentence,label\n"fine film,1\nbad film,0\n'))
    with pytest.raises(ValueError, match=r"line 3: .* a quotation mark is written twice"):
        read_table(write(tmp_path, "a.csv", 'sentence,label\nfine,1\n"Fine" film,0\n'))


def test_rows_know_their_lines(tmp_path):
    path = write(tmp_path, "a.csv", 'sentence,label\n"one\ntwo",1\n\nthree,0\n')
    with pytest.warns(UserWarning, match="several lines"):
        frame = read_table(path)
    assert frame.index.tolist() == [2, 5]
    assert frame.index.name == "line"
    assert frame["sentence"].tolist() == ["one\ntwo", "three"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_is_told_from_the_header(tmp_path, separator):
    frame = read_table(write(tmp_path, "a.csv", CSV.replace(",", separator)))
    assert frame["label"].tolist() == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            CSV.replace("fine", "naïve – “fine”").encode("cp1252"),
            r"Windows-1252; iconv -f CP1252 -t UTF-8 .*a.csv > new",
        ),
        (
            "a.csv",
            CSV.replace("fine", "\x81\xe9").encode("latin-1"),
            r"not UTF-8 \(byte 17 is 0x81\).*file --mime-encoding",
        ),
        ("a.csv", CSV.encode("utf-16"), r"it is UTF-16: iconv -f UTF-16 -t UTF-8"),
        ("a.csv", CSV.encode("utf-16-le"), r"zero bytes, as UTF-16 does: iconv -f UTF-16LE"),
        ("a.tsv", gzip.compress(CSV.encode()), r"compressed with gzip: gunzip -c .*a.tsv > new.tsv"),
        ("a.tsv", CSV.replace(",", "\t").replace("\n", "\r"), r"lines end in CR alone.*tr '\\r' '\\n' < .*a.tsv"),
        ("a.csv", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
        ("a.jsonl", '{"sentence": "a"}\n[1]\n', r"line 2 is \[1\], expected an object"),
        ("a.xlsx", b"PK\x03\x04rest", r"ends in '.xlsx', expected .tsv, .csv, .jsonl, .parquet"),
    ],
    # contents differ from process to process: gzip writes the time
    ids=["cp1252", "unknown", "utf-16", "utf-16 without mark", "gzip", "CR", "zip", "no objects", "spreadsheet"],
)
def test_files_that_are_something_else_are_called_what_they_are(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, name, content))


def test_jsonl_as_pandas_writes_it_keeps_separators_inside_a_text(tmp_path):
    texts = ["one\u2028two", "three\u0085four"]
    frame = pd.DataFrame({"sentence": texts})
    path = tmp_path / "a.jsonl"
    frame.to_json(path, orient="records", lines=True, force_ascii=False)
    assert "\u2028" in path.read_text(encoding="utf-8") or json.loads(path.read_text().split("\n")[0])
    assert read_table(path)["sentence"].tolist() == texts


def test_every_format_gives_the_same_texts(tmp_path):
    texts = ["NA", " None", "", 'say "no, never"', "1.0"]
    frame = pd.DataFrame({"a": texts, "b": "x"})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.tsv").write_text("a\tb\n" + "".join(f"{text}\tx\n" for text in texts))
    for suffix in ("csv", "jsonl", "parquet", "tsv"):
        assert read_table(tmp_path / f"a.{suffix}")["a"].tolist() == texts, suffix


def test_what_spreadsheets_and_hands_write_is_read(tmp_path):
    frame = read_table(write(tmp_path, "a.csv", "sep=;\nsentence;label\none;1\ntwo;0\n\n  \n"))
    assert (frame["sentence"].tolist(), frame.index.tolist()) == (["one", "two"], [3, 4])
    frame = read_table(write(tmp_path, "A.CSV", 'sentence, label\n"good, really", "1"\n"bad", "0"\n'))
    assert frame.to_dict("list") == {"sentence": ["good, really", "bad"], "label": ["1", "0"]}
    assert len(read_table(write(tmp_path, "a.tsv", "sentence\tlabel\none\t1\n\n\n"))) == 1
    assert len(read_table(write(tmp_path, "a.jsonl", '{"sentence": "one"}\n\n'))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\n", "it has no rows"),
        ("a.csv", "label,label\n1,2\n", "its column 'label' stands twice"),
        ("a.csv.gz", b"\x1f\x8b", r"ends in '.gz', expected .*: gunzip -c"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, name, content))
