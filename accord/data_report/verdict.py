"""Which hazards are in more rows than are accepted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from accord.data_report.counts import Counts
from accord.data_report.hazards import HAZARDS
from accord.errors import UserError


@dataclass(frozen=True, slots=True)
class Limit:
    """In how many rows a hazard is accepted: a number, or a share of all rows."""

    text: str
    rows: float = 0
    share: float = 0.0

    def exceeded(self, count: float, rows: int) -> bool:
        return count > (self.share * rows if self.text.endswith("%") else self.rows)


def parse_limit(option: str, text: str) -> Limit | None:
    """``3`` rows, ``0.5%`` of the rows, or ``none`` for no limit.  Raises UserError for anything else."""
    if text == "none":
        return None
    if re.fullmatch(r"\d{1,15}", text, re.ASCII):
        return Limit(text, rows=int(text))
    if re.fullmatch(r"\d{1,3}(\.\d{1,6})?%", text, re.ASCII) and float(text[:-1]) <= 100:
        return Limit(text, share=float(text[:-1]) / 100)
    raise UserError(f"{option}: {text!r}; expected a number of rows such as 3, a share such as 0.5%, or none.")


def default_limits() -> dict[str, Limit | None]:
    """No row of what spoils training, any number of the others."""
    return {name: Limit("0") if hazard.spoils else None for name, hazard in HAZARDS.items()}


def exceeded(counts: Counts, limits: Mapping[str, Limit | None]) -> list[str]:
    """The hazards past their limits, in the report's order."""
    return [
        name
        for name in HAZARDS
        if (limit := limits[name])
        and name in counts.hazards
        and limit.exceeded(counts.hazards[name].count, counts.rows)
    ]
