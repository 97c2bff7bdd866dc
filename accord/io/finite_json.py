"""JSON text that every reader accepts: a number that is not finite is written as null.

``figures`` reads a record's numbers again; null becomes NaN there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NAN = float("nan")


def dumps(value: Any, **options: Any) -> str:
    """The value as JSON, with null for NaN and infinity; ``options`` are those of json.dumps.

    Raises TypeError for values that JSON has not.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """The value with None for each number that is not finite, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {finite(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def figures(record: Any) -> dict[str, float]:
    """The numbers of a record by name, NaN where it has null; anything else is left out."""
    items = record.items() if isinstance(record, Mapping) else ()
    numbers = {str(name): NAN if value is None else value for name, value in items}
    return {name: value for name, value in numbers.items() if type(value) in (int, float)}


def shown(value: float | None, form: str = ".4g") -> str:
    """A figure as text, "-" where it is undefined."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)
