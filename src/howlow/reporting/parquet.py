"""results.parquet: the rows of results.csv with a type for each column, and its unit and meaning in the schema."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from howlow.analysis.column import Column
from howlow.analysis.rows import Results
from howlow.reporting.results import plain_cell

if TYPE_CHECKING:
    import pyarrow

_UNITS = {
    "bytes": "B",
    "seconds": "s",
    "per_second": "1/s",
    "joules": "J",
    "watts": "W",
    "fraction": "1",
    "nats": "nat",
    "hertz": "Hz",
    "celsius": "°C",
}
_LARGEST = 2**63
"""Whole numbers from here on are no int64."""


def parquet_bytes(results: Results) -> bytes:
    """One row a trial; absent is null. A column's type follows from its unit, an axis's from its values."""
    import pyarrow
    import pyarrow.parquet

    values = {column.name: [row[column.name] for row in results.rows] for column in results.columns}
    schema = pyarrow.schema([_field(column, values[column.name]) for column in results.columns])
    arrays = [_array(values[field.name], field.type) for field in schema]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), file)
    return file.getvalue()


def _field(column: Column, values: Sequence[Any]) -> "pyarrow.Field":
    import pyarrow

    unit = _UNITS.get(column.unit)
    metadata = {"meaning": column.meaning} | ({"unit": unit} if unit else {})
    return pyarrow.field(
        column.name, _type(column, [value for value in values if value is not None]), metadata=metadata
    )


def _type(column: Column, there: Sequence[Any]) -> "pyarrow.DataType":
    import pyarrow

    kinds = {type(value) for value in there}
    fits = all(kind is not int or abs(value) < _LARGEST for kind, value in zip(map(type, there), there, strict=True))
    if column.is_number:
        return pyarrow.int64() if column.unit in ("count", "bytes") and kinds <= {int} and fits else pyarrow.float64()
    if kinds == {bool}:
        return pyarrow.bool_()
    if not kinds or not kinds <= {int, float} or not fits:
        return pyarrow.string()
    if kinds == {int}:
        return pyarrow.int64()
    return pyarrow.float64() if all(float(value) == value for value in there) else pyarrow.string()


def _array(values: Sequence[Any], kind: "pyarrow.DataType") -> "pyarrow.Array":
    import pyarrow

    if pyarrow.types.is_string(kind):
        return pyarrow.array([None if value is None else str(plain_cell(value)) for value in values], type=kind)
    if pyarrow.types.is_float64(kind):  # it refuses integers that are no such number
        return pyarrow.array([None if value is None else float(value) for value in values], type=kind)
    return pyarrow.array(values, type=kind)
