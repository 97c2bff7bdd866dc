"""The types of all numeric settings: finite, no booleans, with a lower and an upper bound.

An upper bound is far above what is useful and far below what overflows: it catches a slip of the keyboard.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _number(value: Any) -> Any:
    """The value, unless it is a boolean: ``yes``, ``no``, ``on`` and ``off`` are booleans in YAML."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "a number, not a boolean (yes, no, on, off, true, false)")
    return value


_NUMBER = BeforeValidator(_number)

# ------------------------------------------------------------------ whole numbers
Seed = Annotated[int, Field(ge=0, le=2**63 - 1), _NUMBER]
Count = Annotated[int, Field(ge=1, le=10**9), _NUMBER]
"""Rows, steps, epochs, replies."""
CountOrZero = Annotated[int, Field(ge=0, le=10**9), _NUMBER]
Timesteps = Annotated[int, Field(ge=1, le=10**12), _NUMBER]
"""Environment steps of a whole run."""
Threads = Annotated[int, Field(ge=0, le=1024), _NUMBER]
"""CPU threads: the process ends without an error message where the system cannot start them."""
Ranks = Annotated[int, Field(ge=1, le=1024), _NUMBER]
"""Processes on one machine that train together."""
Workers = Annotated[int, Field(ge=1, le=4096), _NUMBER]
"""Processes that collect rollouts, on one machine or many."""
TimeLimit = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False), _NUMBER]
"""Seconds that a process may wait for others."""
Requests = Annotated[int, Field(ge=1, le=256), _NUMBER]
"""HTTP requests at the same time."""
Overlap = Annotated[int, Field(ge=0, le=100), _NUMBER]
"""People who are asked the same."""
Retries = Annotated[int, Field(ge=0, le=100), _NUMBER]
Parallel = Annotated[int, Field(ge=1, le=10**5), _NUMBER]
"""Environments that run side by side."""
Tokens = Annotated[int, Field(ge=1, le=2**24), _NUMBER]
"""Tokens of one text."""
TokensOrZero = Annotated[int, Field(ge=0, le=2**24), _NUMBER]
Context = Annotated[int, Field(ge=2, le=2**24), _NUMBER]
"""Tokens of one text that holds at least one token and a label after it."""
Width = Annotated[int, Field(ge=1, le=2**16), _NUMBER]
"""Hidden sizes."""
Vocabulary = Annotated[int, Field(ge=1, le=2**24), _NUMBER]
Layers = Annotated[int, Field(ge=1, le=1024), _NUMBER]
LayersOrZero = Annotated[int, Field(ge=0, le=1024), _NUMBER]

# ------------------------------------------------------------------ real numbers
LearningRate = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), _NUMBER]
Coefficient = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _NUMBER]
PositiveCoefficient = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), _NUMBER]
Weight = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), _NUMBER]
"""A factor or a score of either sign."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _NUMBER]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]
DecayRate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NUMBER]
"""Of a moving average, whose bias correction divides by 1 - rate."""
FlippedShare = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False), _NUMBER]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False), _NUMBER]
"""Divides logits; smaller ones overflow, and are greedy in all but name."""
TemperatureOrZero = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False), _NUMBER]
"""0 is greedy."""
Seconds = Annotated[float, Field(ge=0.1, le=86400, allow_inf_nan=False), _NUMBER]
"""How long something is waited for."""
GradientNorm = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False), _NUMBER]
LogDeviation = Annotated[float, Field(ge=-20, le=20, allow_inf_nan=False), _NUMBER]
"""The logarithm of a standard deviation."""
