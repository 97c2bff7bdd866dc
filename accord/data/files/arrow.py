"""Rows of Parquet files and of Arrow folders, as ``datasets`` writes both (``to_parquet``, ``save_to_disk``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.installation import install_command
from accord.io.readers import read_json

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What marks a saved data set, and a folder of several."""


def is_arrow_folder(path: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote this folder: one data set, or several splits."""
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / "dataset_info.json").is_file())


def arrow_files(folder: Path) -> list[Path]:
    """The files of a saved data set, in order; of several splits those of ``train``, or of the only one.

    Raises UserError for a folder of several splits, naming them, and for files that are missing or lie elsewhere.
    """
    if (folder / SPLITS).is_file():
        splits = read_json(folder / SPLITS, "save the data set again.").get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        if len(names) != 1 and "train" not in names:
            example = folder / (names[0] if names else "train")
            raise UserError(f"{folder}: holds the splits {', '.join(names) or 'none'}; name one, as {example}")
        folder = folder / ("train" if "train" in names else names[0])
    files = read_json(folder / STATE, "save the data set again.").get("_data_files")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / STATE}: names {name!r}, which is not a file of this folder; save the data set again."
            )
    return [folder / name for name in names]


def arrow_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of one Arrow file.  Raises UserError where pyarrow is missing or the file is damaged."""
    with _readable(path), path.open("rb") as file:
        import pyarrow.ipc

        yield from _rows(pyarrow.ipc.open_stream(file))


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of a Parquet file.  Raises UserError where pyarrow is missing or the file is damaged."""
    with _readable(path), path.open("rb") as file:
        import pyarrow.parquet

        yield from _rows(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=512))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        import pyarrow as arrow
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet and Arrow files needs pyarrow; {install_command('data')}, or save the rows as JSON Lines"
        ) from None
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); save it again") from None


def _rows(batches: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in batches:
        json_columns = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
        for row in batch.to_pylist():
            number += 1
            row = {key: _without_nulls(value) for key, value in row.items()}
            for name, kind in json_columns.items():  # after it: a null that stands in JSON was written on purpose
                row[name] = _decoded(row[name], kind)
            yield number, row


def _without_nulls(value: Any) -> Any:
    """A value without the null keys of its objects: Arrow gives every object of a column the keys of all."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _inner(kind: Any) -> list[Any]:
    return [kind.field(i).type for i in range(kind.num_fields)]


def _holds_json(kind: Any) -> bool:
    return "json" in str(kind) and (str(kind).startswith("extension<arrow.json") or any(map(_holds_json, _inner(kind))))


def _decoded(value: Any, kind: Any) -> Any:
    """A value with the texts of its JSON columns parsed: objects whose keys differ from row to row are stored so."""
    if value is None:
        return None
    if str(kind).startswith("extension<arrow.json"):
        return json.loads(value)
    inner = _inner(kind)
    if isinstance(value, list):
        return [_decoded(item, inner[0]) for item in value]
    if isinstance(value, dict):
        kinds = {kind.field(i).name: inner[i] for i in range(len(inner))}
        return {key: _decoded(item, kinds[key]) for key, item in value.items()}
    return value
