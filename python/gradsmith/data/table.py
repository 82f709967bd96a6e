"""Numbers in text files: CSV."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..core.tensor import resolve_dtype
from .dataset import ArrayDataset

__all__ = ["CSVDataset"]

_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?", "-"))
Column = int | str


class CSVDataset(ArrayDataset):
    """A CSV file of numbers: features x float32 (N, F), and a target y.

    Args:
        path: the file, UTF-8.
        target: the target's column, by name or position (-1 is the last); a list of columns; or
            None for x alone.
        header: whether the first line holds names; "auto" says yes if nothing in it is a number.
        delimiter: one character; None takes the most frequent of ``, ; tab |`` in the first line,
            outside of quotes.
        missing: "error" to stop at a missing value (empty, NA, nan, ?, ...), "drop" to leave out
            its line.
        dtype: of x and of real-valued targets.

    A target of whole numbers becomes y int64 (N,), class indices for ``cross_entropy``; real
    numbers become y (N, 1); text becomes class indices, sorted by name, with the names in
    ``classes``; several targets become y (N, k). ``columns`` holds the names of the features.

    Raises:
        ValueError: not numbers, lines of different lengths, missing or infinite values, no data;
            names the file, the line and the column.
        OSError: the file cannot be read.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "flowers.csv")
    >>> with open(path, "w") as f: _ = f.write("length,width,kind\\n5.1,3.5,a\\n4.9,3.0,b\\n")
    >>> ds = CSVDataset(path, target="kind")
    >>> ds.columns, ds.classes, ds.arrays[1].tolist()
    (['length', 'width'], ['a', 'b'], [0, 1])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: Column | Iterable[Column] | None = -1,
        header: bool | str = "auto",
        delimiter: str | None = None,
        missing: str = "error",
        dtype: Any = "float32",
    ) -> None:
        if missing not in ("error", "drop"):
            raise ValueError(f"CSVDataset: missing must be 'error' or 'drop', got {missing!r}")
        if isinstance(header, (int, np.bool_)) and header in (0, 1):
            header = bool(header)
        if header is not True and header is not False and header != "auto":
            raise ValueError(f"CSVDataset: header must be True, False or 'auto', got {header!r}")
        wanted = resolve_dtype(dtype, "CSVDataset")
        if wanted.kind != "f":
            raise ValueError(
                f"CSVDataset: dtype must be 'float32' or 'float64', got {wanted}; whole "
                "numbers in the target's column become int64 by themselves"
            )
        reader = _Reader(os.fspath(path), header, delimiter, missing == "drop")
        try:
            x, y, columns, classes = reader.read(target, wanted)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{reader.path}: not a CSV text file ({error})") from None
        super().__init__(*((x,) if y is None else (x, y)), classes=classes)
        self.columns = columns


class _Reader:
    def __init__(self, path: str, header: bool | str, delimiter: str | None, drop: bool) -> None:
        self.path, self.header, self.delimiter, self.drop = path, header, delimiter, drop
        self.names: list[str] = []

    def fail(self, line: int, column: int, problem: str) -> ValueError:
        named = f" ({self.names[column]})" if self.named else ""
        return ValueError(f"{self.path}: line {line}, column {column + 1}{named}: {problem}")

    def read(self, target: Any, dtype: np.dtype) -> tuple[Any, Any, list[str], list[str] | None]:
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=self._sniff(file), skipinitialspace=True)
            first = next((row for row in rows if not _blank(row)), None)
            if first is None:
                raise ValueError(f"{self.path}: the file has no lines")
            width = len(first)
            self.named = self.header is True or (
                self.header == "auto" and all(_number(text) is None for text in first)
            )
            self.names = (
                [t.strip() for t in first] if self.named else [str(i) for i in range(width)]
            )
            targets = self._targets(target, width)
            single = targets[0] if len(targets) == 1 else None
            values, texts, lines = array("d"), [], array("q")
            pending = None if self.named else (rows.line_num, first)
            while True:
                if pending is not None:
                    (line, row), pending = pending, None
                else:
                    nxt = next(rows, None)
                    if nxt is None:
                        break
                    line, row = rows.line_num, nxt
                if len(row) != width and _blank(row):
                    continue
                if len(row) != width:
                    raise ValueError(
                        f"{self.path}: line {line} has {len(row)} values; expected {width}, as in "
                        "the first line"
                    )
                numbers = self._numbers(line, row, single)
                if numbers is None:
                    continue  # dropped
                if single is not None:
                    texts.append(row[single].strip())
                values.extend(numbers)
                lines.append(line)
        if not lines:
            raise ValueError(f"{self.path}: no lines of data below the names")
        table = np.frombuffer(values, np.float64).reshape(len(lines), width)
        features = [i for i in range(width) if i not in targets]
        x = self._cast(table, features, lines, dtype)
        names = [self.names[i] for i in features]
        if not targets:
            return x, None, names, None
        if single is None:
            return x, self._cast(table, targets, lines, dtype), names, None
        y, classes = self._target(table, texts, single, lines, dtype)
        return x, y, names, classes

    def _sniff(self, file: Any) -> str:
        if self.delimiter is not None:
            if len(self.delimiter) != 1 or self.delimiter in '\r\n"':
                raise ValueError(f"CSVDataset: delimiter must be one character: {self.delimiter!r}")
            return self.delimiter
        start = "\n"
        while start and not start.strip():
            start = file.readline(1 << 16)
        file.seek(0)
        start = re.sub('"[^"]*"?', "", start)  # what is quoted separates nothing
        return max(",;\t|", key=start.count)

    def _targets(self, target: Any, width: int) -> list[int]:
        if target is None:
            return []
        several = isinstance(target, Iterable) and not isinstance(target, str)
        wanted = list(target) if several else [target]
        found = []
        for column in wanted:
            if isinstance(column, bool) or not isinstance(column, (int, np.integer, str)):
                raise TypeError(
                    f"CSVDataset: target must be a column's name or position, or several of them, got {column!r}"
                )
            if isinstance(column, str):
                if not self.named or column not in self.names:
                    known = ", ".join(self.names[:20]) if self.named else "no names"
                    raise ValueError(f"{self.path}: no column {column!r}; it has {known}")
                if self.names.count(column) > 1:
                    raise ValueError(
                        f"{self.path}: {self.names.count(column)} columns are called {column!r}; "
                        "name the target by its position"
                    )
                found.append(self.names.index(column))
            elif -width <= column < width:
                found.append(int(column) % width)
            else:
                raise ValueError(f"{self.path}: no column {column}; it has {width} columns")
        if len(set(found)) != len(found):
            raise ValueError(f"{self.path}: a target column is named twice: {wanted}")
        if len(found) == width:
            raise ValueError(f"{self.path}: every column is a target; no features are left")
        return found

    def _numbers(self, line: int, row: list[str], text: int | None) -> Any:
        """The row as floats (0 in a single target column); None to drop it."""
        if text is not None:
            if _is_missing(row[text]):
                if self.drop:
                    return None
                raise self.fail(line, text, _missing(row[text]))
            row = row.copy()
            row[text] = "0"
        try:
            numbers = [float(value) for value in row]
            if all(value - value == 0 for value in numbers) and "_" not in "".join(row):
                return numbers  # all finite
        except ValueError:
            pass
        for column, value in enumerate(row):  # say where it failed
            if _is_missing(value):
                if self.drop:
                    return None
                raise self.fail(line, column, _missing(value))
            number = _number(value)
            if number is None:
                raise self.fail(line, column, f"expected a number, got {value[:40]!r}")
            if number - number != 0:
                raise self.fail(line, column, f"the value {value.strip()[:40]!r} is not finite")
        return [_number(value) for value in row]

    def _cast(self, table: np.ndarray, columns: list[int], lines: Any, dtype: np.dtype) -> Any:
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(table[:, columns].astype(dtype))
        if dtype.kind == "f" and not np.isfinite(result).all():
            row, column = np.argwhere(~np.isfinite(result))[0]
            column = columns[column]
            raise self.fail(
                lines[row],
                column,
                f"{table[row, column]} does not fit {dtype}; use dtype='float64'",
            )
        return result

    def _target(
        self, table: np.ndarray, texts: list[str], column: int, lines: Any, dtype: np.dtype
    ) -> tuple[np.ndarray, list[str] | None]:
        numbers = [_number(text) for text in texts]
        bad = [i for i, number in enumerate(numbers) if number is None]
        if len(bad) == len(texts):
            names = sorted(set(texts))
            index = {name: i for i, name in enumerate(names)}
            return np.array([index[text] for text in texts], np.int64), names
        if bad:
            raise self.fail(
                lines[bad[0]],
                column,
                f"expected a number, got {texts[bad[0]][:40]!r}; other lines have numbers there",
            )
        values = np.array(numbers, np.float64)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise self.fail(lines[row], column, f"the value {texts[row]!r} is not finite")
        if (values == np.rint(values)).all() and np.abs(values).max() < 2**31:
            return values.astype(np.int64), None
        filled = table.copy()
        filled[:, column] = values
        return self._cast(filled, [column], lines, dtype), None


def _number(text: str) -> float | None:
    if "_" in text:  # Python would take 1_000
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _blank(row: list[str]) -> bool:
    """A line of nothing but white space."""
    return not row or (len(row) == 1 and not row[0].strip())


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _missing(text: str) -> str:
    shown = f" ({text.strip()!r})" if text.strip() else ""
    return f"the value is missing{shown}; fill it, or read with missing='drop'"
