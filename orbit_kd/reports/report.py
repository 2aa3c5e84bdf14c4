"""The report of a compression: one dict of measured figures, saved as `report.json` and as a page for people.

The keys are documented in docs/report.md. Nothing is measured here: what was not measured stays absent and is shown as
"not run".
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.reports.summary import before_after, headline, table

SCHEMA = 1
DICTS = ("teacher", "student", "ratios", "recipe", "preprocess", "data", "versions", "search", "chosen", "task")
RECORDS = ("artifacts", "layers", "history", "stages", "pictures")
LISTS = (*RECORDS, "class_names", "notes")


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that was measured, before and after; `print(report)` shows the before/after table.

    The sections are attributes: `report.teacher["accuracy"]`, `report.artifacts[0]["bytes"]`; an absent section is
    empty.

    Attributes:
        data: the report as plain JSON values, see docs/report.md. Numpy values, tuples, paths and dataclasses given
            to the constructor become plain; NaN and infinities become None, for they are no measurements.

    Raises:
        InputError: the data is no report, or of a schema this version does not know.
    """

    data: dict[str, Any]

    def __post_init__(self) -> None:
        data = plain(self.data)
        if not isinstance(data, dict):
            raise InputError(
                f"A {type(self.data).__name__} is no report.", expected="a dict", fix="see docs/report.md for its keys"
            )
        for kind, names in ((dict, DICTS), (list, LISTS)):
            for name in names:
                if data.get(name) is not None and not isinstance(data[name], kind):
                    raise InputError(
                        f"The report's section {name!r} is a {type(data[name]).__name__}.",
                        expected=f"a {kind.__name__}",
                        fix="see docs/report.md for the sections",
                    )
        for name in RECORDS:
            if not all(isinstance(record, dict) for record in data.get(name) or []):
                raise InputError(
                    f"The report's section {name!r} holds something that is no record.",
                    expected="a list of dicts",
                    fix="see docs/report.md for the sections",
                )
        if data.setdefault("schema", SCHEMA) != SCHEMA:
            raise InputError(
                f"The report has schema {data['schema']!r}.",
                expected=f"schema {SCHEMA}",
                fix="use the version of orbit_kd that wrote the report, or run the evaluation again",
            )
        object.__setattr__(self, "data", data)

    def __getattr__(self, name: str) -> Any:
        if name in DICTS:
            return self.data.get(name) or {}
        if name in LISTS:
            return self.data.get(name) or []
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __str__(self) -> str:
        claim, verdict = headline(self.data)
        rows = before_after(self.data)
        return "\n".join([claim, verdict, *(["", table(rows)] if rows else [])])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes report.json and report.html into `folder`, which is made if need be.

        Both files appear whole or not at all.

        Returns:
            The path of report.html.

        Raises:
            InputError: the folder cannot be written.
        """
        from orbit_kd.reports.page import page

        folder = Path(folder)
        html = page(self.data)
        text = json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write({folder / "report.json": text, folder / "report.html": html})
        except OSError as e:
            raise InputError(
                f"The report cannot be written to {folder}: {e.strerror or e}.",
                expected="a folder that can be written, with space left",
                fix="choose another folder, or change its permissions",
            ) from e
        return folder / "report.html"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """The report saved in a folder, or in a report.json.

        Raises:
            InputError: there is none, or the file is no report.
        """
        path = Path(path)
        file = path / "report.json" if path.is_dir() else path
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is no JSON"
            raise InputError(
                f"No report can be read from {file}: {reason}.",
                expected="a report.json, or the folder that holds one",
                fix="give the folder that `Report.save` or tools/compress.py wrote",
            ) from e
        return cls(data)


def plain(value: Any) -> Any:
    """The same value made of dict, list, str, int, float, bool and None only; NaN and infinities become None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(v) for v in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    return str(value)


def _write(files: dict[Path, str]) -> None:
    """Writes all under temporary names first: a full disk or a kill leaves the files of an earlier run as they were."""
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in files}
    try:
        for file, text in files.items():
            temporary[file].write_text(text, encoding="utf-8")
        for file, name in temporary.items():
            os.replace(name, file)
    finally:
        for name in temporary.values():
            name.unlink(missing_ok=True)
