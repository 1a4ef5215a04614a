"""Tables of texts from files: nothing is lost in silence, and a refusal names file, line and a way out."""

import csv
import io
import json
import re
import shlex
import warnings
from pathlib import Path

import pandas as pd

# how a file that is no UTF-8 text begins, what it is then, and how to turn it into one
_FOREIGN = {
    b"\x1f\x8b": ("compressed with gzip", "gunzip -c {0} > new{1}"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {0} > new{1}"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {0} > new{1}"),
}


def read_table(path: str | Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a file of rows, in the format that its suffix names; texts stay as they are.

    ``.tsv`` is GLUE's own format: tab-separated, a quotation mark is a character like any other. ``.csv`` may
    quote, and its separator (comma, semicolon, tab or bar) is told from the header. ``.jsonl`` is one object a
    line. ``.parquet`` as it is.

    Parameters
    ----------
    path : str or pathlib.Path
        The file: UTF-8, with or without a byte-order mark.
    columns : tuple of str
        Names of the columns of a ``.tsv`` file that has no header.

    Returns
    -------
    pandas.DataFrame
        Its index, named ``"line"`` (``"row"`` for parquet), says where in the file each row begins, from 1.

    Raises
    ------
    ValueError, FileNotFoundError
        If the file cannot be read, is no UTF-8, or a row has more or fewer fields than the header.

    Warns
    -----
    UserWarning
        If a quoted text of a ``.csv`` holds line breaks: a quotation mark may be missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        way_out = f": gunzip -c {shlex.quote(str(path))} > new.csv" if suffix == ".gz" else ", by which it is read"
        raise ValueError(f"{path} ends in {path.suffix!r}, expected {', '.join(READERS)}{way_out}")
    try:
        frame = tsv_frame(read_lines(path), columns, first=1) if columns else READERS[suffix](path)
        if frame.empty:
            raise ValueError("it has no rows")
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise ValueError(f"its column {twice[0]!r} stands twice")
        return frame
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    name = shlex.quote(str(path))
    for start, (kind, command) in _FOREIGN.items():
        if raw.startswith(start):
            raise ValueError(f"it is {kind}: {command.format(name, path.suffix)}")
    if b"\0" in raw:
        raise ValueError(
            f"it holds zero bytes, as UTF-16 does: iconv -f UTF-16LE -t UTF-8 {name} > new{path.suffix}"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}): {_advice(path, raw)}"
        ) from error
    if "\r" in text and "\n" not in text:
        raise ValueError(f"its lines end in CR alone, as on old Macs: tr '\\r' '\\n' < {name} > new{path.suffix}")
    return text.replace("\r\n", "\n")


def _advice(path: Path, raw: bytes) -> str:
    name = shlex.quote(str(path))
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return f"ask `file --mime-encoding {name}` what it is, and turn it into UTF-8 with iconv"
    return f"it looks like Windows-1252; iconv -f CP1252 -t UTF-8 {name} > new{path.suffix}"


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file without their ends, and without blank ones at its end."""
    # not splitlines(), which also splits at characters that may stand inside a sentence: U+2028, U+0085
    return _read_text(path).rstrip("\n").split("\n")


def tsv_frame(lines: list[str], columns: tuple[str, ...], first: int) -> pd.DataFrame:
    """Split lines at tabs; `first` is the number of the first one in its file."""
    rows = [line.split("\t") for line in lines]
    return _frame(rows, range(first, first + len(rows)), columns)


def _frame(
    rows: list[list[str]], numbers: "range | list[int]", columns: "tuple[str, ...] | list[str]", hint: str = ""
) -> pd.DataFrame:
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(columns):
            raise ValueError(f"line {number} has {len(row)} fields, expected {len(columns)}{hint}")
    return pd.DataFrame(rows, pd.Index(numbers, name="line"), columns=list(columns), dtype=object)


def _read_tsv(path: Path) -> pd.DataFrame:
    header, *lines = read_lines(path)
    return tsv_frame(lines, tuple(header.split("\t")), first=2)


def _read_csv(path: Path) -> pd.DataFrame:
    text = _read_text(path)
    header, begin = text.split("\n", 1)[0], 1
    separator = max(",;\t|", key=re.sub('"[^"]*"', "", header).count)
    if named := re.match(r"sep=(.)\n", text):
        # Excel's own first line
        text, separator, begin = text[named.end() :], named[1], 2
    # not pandas, which takes surplus fields for an index and "NA" for a missing text
    csv.field_size_limit(2**31 - 1)
    # "a", "b": by the standard the second text would begin with a space and hold the marks
    spaced = f'{separator} "' in text[:1000]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    rows, numbers, longer, above = [], [], [], begin - 1
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                rows.append(row)
                numbers.append(begin)
                if reader.line_num + above > begin:
                    longer.append(begin)
            begin = reader.line_num + above + 1
    except csv.Error as error:
        raise ValueError(
            f"line {begin}: {error}; inside a quoted text a quotation mark is written twice, and each one that "
            "opens is closed"
        ) from error
    if longer:
        warnings.warn(
            f"{path}: {len(longer)} rows hold a text of several lines, the first in line {longer[0]}; if these "
            "are rows of their own, a quotation mark is missing",
            stacklevel=4,
        )
    names, *rows = rows or [[""]]
    hint = f" (separated by {separator!r}): put a text that holds {separator!r} in quotation marks"
    frame = _frame(rows, numbers[1:], names, hint)
    frame.attrs["separator"] = separator
    return frame


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines := read_lines(path), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number} is {line[:40]}, expected an object with a field a column")
    return pd.DataFrame(rows, pd.RangeIndex(1, len(lines) + 1, name="line"), dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1, name="row"))


READERS = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def place(frame: pd.DataFrame, wrong: pd.Series) -> str:
    """Say where the first row of `frame` stands for which `wrong` is True: ``"line 7"``."""
    return f"{frame.index.name or 'row'} {frame.index[int(wrong.to_numpy(bool).argmax())]}"


def require_columns(where: str, found: list[str], expected: tuple[str, ...] | list[str]) -> None:
    """Raise ValueError, with the columns there are, if one is missing."""
    missing = [column for column in expected if column not in found]
    if missing:
        # spaces around a name would not be seen
        shown = [repr(name) if name != name.strip() else name for name in map(str, found)]
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, missing))}: expected {', '.join(expected)}, "
            f"found {', '.join(shown)}"
        )


def require_texts(where: str, frame: pd.DataFrame, columns: tuple[str, ...] | list[str]) -> None:
    """Raise ValueError, with the place, if a row has no text in one of `columns`."""
    for column in columns:
        blank = ~frame[column].map(lambda text: isinstance(text, str) and bool(text.strip())).astype(bool)
        if blank.any():
            shown = ", ".join(map(str, frame.index[blank][:5])) + (", …" if blank.sum() > 5 else "")
            other = frame[column][blank].dropna().map(lambda text: not isinstance(text, str))
            if other.any():
                kind = type(frame[column][blank].dropna()[other].iloc[0]).__name__
                raise ValueError(
                    f"{where}: column {column!r} holds {kind}, expected texts: turn them into strings"
                )
            raise ValueError(
                f"{where}: {int(blank.sum())} rows have no text in column {column!r} "
                f"({frame.index.name or 'row'} {shown}): fill or remove them"
            )
