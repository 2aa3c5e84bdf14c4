"""A table of labels, `labels.csv`: a row an image, a column a label."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orbit_kd.datasets.part_folders import IMAGES, SPLITS, files_in, folders_in, sizes_of, some, split_of
from orbit_kd.datasets.splits import Source
from orbit_kd.datasets.truths import Numbers
from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest

log = logging.getLogger("orbit_kd")
LAYOUT = "labels.csv with the columns file, split (optional: train, val, test), and one for each label"
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "name")
TABLE_TASKS = ("classification", "binary", "multi_label", "regression")


def fits(folder: Path) -> bool:
    """Whether there is a table."""
    return (folder / "labels.csv").is_file()


def read(folder: Path, task: str = "auto") -> Source:
    """The images and labels of `labels.csv`.

    Args:
        folder: holds the table, and the images where its rows say, or in `images/`, or in `<split>/`.
        task: "multi_label", "binary" or "regression"; "classification" for one column of class names or numbers;
            "auto" takes 0 and 1 in one column as binary, in several as multi_label, and other numbers as regression.

    Raises:
        InputError: a file without a row or a row without a file, a cell that is no number, columns that the task does
            not take.
    """
    table = folder / "labels.csv"
    header, rows = _rows(table)
    split_column = header.index("split") if "split" in header[1:] else None
    columns = [i for i in range(1, len(header)) if i != split_column]
    if not columns:
        raise InputError(f"{table} has no column of labels: {', '.join(header)}.", expected=LAYOUT, fix="add one")
    files, found = _files(folder, table, rows, split_column)
    labels: np.ndarray | Numbers
    if task == "classification":
        if len(columns) > 1:
            raise InputError(
                f"{table} has {len(columns)} columns of labels, and the task is classification.",
                expected="one column, with the class of each image",
                fix="take the other columns out, or choose multi_label (task=..., --task)",
            )
        texts = [row[columns[0]].strip() for _, row in rows]
        if "" in texts:
            raise _bad_cell(table, rows[texts.index("")][0], header[columns[0]], "")
        names = sorted(set(texts), key=lambda t: (not _is_number(t), float(t) if _is_number(t) else 0.0, t))
        if len(names) < 2:
            raise InputError(f"{table} has one class only: {names[0]}.", expected="two or more", fix="check the table")
        labels, truth = np.array([names.index(t) for t in texts], np.int32), None
    else:
        values = _values(table, header, rows, columns)
        task, names = _task(task, values, [header[i] for i in columns], table)
        labels = values[:, 0].astype(np.int32) if task == "binary" else np.zeros(len(rows), np.int32)
        truth = Numbers(values)
    return Source(
        items=files,
        names=[str(f) for f in files],
        labels=labels,
        class_names=tuple(names),
        splits=found,
        identity="\n".join([task, digest(names, header, [row for _, row in rows]), *sizes_of(files, folder)]),
        task=task,
        truth=truth,
    )


def _task(task: str, values: np.ndarray, columns: list[str], table: Path) -> tuple[str, list[str]]:
    """The task that the numbers fit, and the names of its labels."""
    flags = bool(np.isin(values, (0, 1)).all())
    if task == "auto":
        task = ("binary" if len(columns) == 1 else "multi_label") if flags else "regression"
        held = "0 and 1" if flags else "other numbers than 0 and 1"
        log.info(
            "data: %s has %s in %d column%s: taken as %s (others: task=..., --task)",
            table.name, held, len(columns), "s" * (len(columns) > 1), task,
        )  # fmt: skip
    if task in ("binary", "multi_label") and not flags:
        row, column = np.argwhere(~np.isin(values, (0, 1)))[0]
        raise InputError(
            f"{table} has {values[row, column]:g} in the column {columns[column]}, and the task is {task}.",
            expected="0 or 1 in each column",
            fix="mend the table, or choose regression (task=..., --task)",
        )
    if task == "binary" and len(columns) > 1:
        raise InputError(
            f"{table} has {len(columns)} columns of labels, and the task is binary.",
            expected="one column of 0 and 1",
            fix="take the others out, or choose multi_label (task=..., --task)",
        )
    if constant := [c for c, name in enumerate(columns) if len(np.unique(values[:, c])) == 1]:
        if len(constant) == len(columns):
            raise InputError(
                f"{table} has the same labels in every row.", expected="labels that differ", fix="check the table"
            )
        log.warning("data: the columns %s of %s hold one value only", some([columns[c] for c in constant]), table.name)
    return task, [f"not {columns[0]}", columns[0]] if task == "binary" else columns


def _rows(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header in lower case where it names file and split, and the rows with the numbers of their lines."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8: {error}.", expected="UTF-8", fix="save it as UTF-8") from error
    first = text.partition("\n")[0]
    between = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=between)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise InputError(f"{table} has no rows.", expected=LAYOUT, fix="write a row an image")
    (_, header), *rest = rows
    header = [cell.strip() for cell in header]
    header = [h.lower() if h.lower() in (*FILE_COLUMNS, "split") else h for h in header]
    if header[0] not in FILE_COLUMNS or len(set(header)) != len(header) or "" in header:
        raise InputError(
            f"The first line of {table} is {', '.join(header)}.",
            expected=f"names of columns, each once; the first is {' or '.join(FILE_COLUMNS[:4])}",
            fix="put such a line first, and the file names in the first column",
        )
    for line, row in rest:
        if len(row) != len(header):
            raise InputError(
                f"Line {line} of {table} has {len(row)} cells, the first line has {len(header)}.",
                expected="as many in each line",
                fix="mend the line; a decimal comma is taken for the end of a cell",
            )
    return header, rest


def _values(
    table: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]], columns: list[int]
) -> np.ndarray:
    """float32 (rows, columns)."""
    for line, row in rows:
        for i in columns:
            if not (_is_number(row[i]) and math.isfinite(float(row[i]))):
                raise _bad_cell(table, line, header[i], row[i])
    return np.array([[float(row[i]) for i in columns] for _, row in rows], np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bad_cell(table: Path, line: int, column: str, cell: str) -> InputError:
    return InputError(
        f"Line {line} of {table} has {cell!r} in the column {column}.",
        expected="a finite number in each column of labels",
        fix="fill it in, or take the row and its image out; for class names in one column choose "
        'task="classification" (--task)',
    )


def _files(
    folder: Path, table: Path, rows: Sequence[tuple[int, list[str]]], split_column: int | None
) -> tuple[list[Path], dict[str, np.ndarray]]:
    """The file of each row, and the splits that the column or the folders in the rows tell."""
    images = [d for d in folders_in(folder) if d.name.lower() in IMAGES]
    files: list[Path] = []
    missing: list[str] = []
    parts: list[str] = []
    for line, row in rows:
        name, said = row[0].strip(), row[split_column].strip() if split_column is not None else ""
        split = split_of(said) if said else None
        if split_column is not None and split is None:
            raise InputError(
                f"Line {line} of {table} has {said!r} in the column split.",
                expected=", ".join(SPLITS),
                fix="name one of these in each row, or leave the column out",
            )
        inside = [d for d in folders_in(folder) if split and split_of(d.name) == split]
        places = [folder, *images, *inside, *(d / i.name for d in images for i in inside)]
        file = next((place / name for place in places if name and (place / name).is_file()), None)
        if file is None:
            missing.append(f"{name!r} (line {line})")
            continue
        files.append(file)
        parts.append(split or split_of(file.relative_to(folder).parts[0]) or "train")
    if missing:
        raise InputError(
            f"{len(missing)} files in {table} are not there: {some(missing)}.",
            expected="paths from the table's folder, or names of files in images/ or in the split's folder",
            fix="mend the names, or take the rows out",
        )
    if len(set(files)) != len(files):
        twice = next(f for i, f in enumerate(files) if f in files[:i])
        raise InputError(f"{table} has two rows for {twice}.", expected="one row a file", fix="take one out")
    listed = set(files)
    alone = [str(f) for d in sorted({f.parent for f in files}) for f in files_in(d) if f not in listed]
    if alone:
        raise InputError(
            f"{len(alone)} images have no row in {table}: {some(alone)}.",
            expected="a row for each image of a folder",
            fix="add the rows, or move these images elsewhere",
        )
    if "train" not in parts:
        raise InputError(f"{table} has no rows for training.", expected="split train", fix="mend the column split")
    return files, {s: np.flatnonzero(np.array(parts) == s) for s in SPLITS if s in parts}
