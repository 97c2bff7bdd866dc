"""The shapes of accord's own records on disk, and their reading: a damaged one is named with its file and key.

A shape lists the keys that accord reads, with their types; others are ignored, so that a newer version may add some.
Undefined figures are null on disk and NaN here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, TypedDict

from accord.errors import UserError
from accord.io.readers import parse_json, read_appended_rows, read_json_if_present, shorten


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e12)] | Annotated[int, Field(ge=0, le=10**12)]
Figure = Annotated[float | Annotated[int, Field(ge=-(2**63), lt=2**63)], BeforeValidator(_nan_for_null)]
_MEMBERS = ("int", "float", "str", "constrained-int", "constrained-float")
Size = Annotated[int, Field(ge=1, le=2**31)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)] | Annotated[int, Field(gt=0, le=2**62)]
Digests = dict[str, str]


class _Shape(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class _Step(_Shape):
    step: Count


class Begun(_Shape, total=False):
    """``begun.json``: what a stage that has not finished was started with."""

    kind: Required[str]
    key: Required[str]
    inputs: Required[Digests]
    """Config key: content digest."""
    sources: dict[str, str]
    """Config key: path."""
    settings: dict[str, Any]
    version: int
    why: list[str]


class Finished(_Shape, total=False):
    """What the lineage of a data file needs of ``done.json``, also of the first versions."""

    kind: Required[str]
    inputs: Required[Digests]
    metrics: Required[dict[str, Figure]]
    sources: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str]


class Done(Begun, total=False):
    """``done.json``: a finished stage."""

    metrics: Required[dict[str, Figure]]
    seconds: Required[Seconds]
    peak_rss_mb: Seconds
    outputs: Digests
    versions: dict[str, str]
    started: Seconds
    finished: Seconds


class Failure(_Shape):
    """``failed.json``."""

    key: str
    error: str


class Wait(_Shape):
    """``waiting.json``: what a stage waits for."""

    key: str
    project: str
    missing: Count
    votes: Count
    """Wanted in all; 0: as many as the overlap on every pair."""
    pairs: list[str]
    """Their digests."""
    page: str


class SavedAnswer(_Shape):
    """A row of a judge's ``answers.jsonl``."""

    request: str
    text: str
    finish: str
    refused: bool
    model: str
    tokens: Count


class Progress(_Shape):
    """``progress.json``."""

    step: Count
    total: Count
    first: Count
    begun: Seconds
    updated: Seconds
    metrics: dict[str, Figure]


class Lock(_Shape):
    """``lock.json``: the process that writes a folder."""

    pid: Count
    host: str
    start: str
    since: NotRequired[str]


class LastRun(_Shape):
    """``pipeline.json``: the file and overrides of the last run in a folder."""

    file: str
    overrides: list[str]


class _Origin(_Shape, total=False):
    """How a model was made."""

    parents: Digests
    settings: dict[str, Any]
    metrics: dict[str, Figure]
    seed: int | None
    versions: dict[str, str]
    created: str


class Manifest(_Origin, total=False):
    """``manifest.json`` of a model folder."""

    digest: Required[Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$")]]
    files: Digests
    kind: str
    name: str
    data: Digests


class LineageRecord(_Origin, total=False):
    """One ancestor in ``lineage.json``."""

    name: Required[str]
    kind: Required[str]
    digest: Required[str]
    form: str


class Export(_Shape):
    """``.accord_export.json`` in the folder of an exported model."""

    name: str
    version: int
    files: list[str]


class Lineage(_Shape):
    """``lineage.json`` of a model folder: its ancestors."""

    records: list[LineageRecord]


class RegistryRow(_Shape):
    """A version in the registry's table ``models``; JSON columns already parsed."""

    id: int
    name: str
    version: Count
    kind: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$")]
    created: str
    code: str
    seed: int | None
    metrics: dict[str, Figure]
    settings: dict[str, Any]
    manifest: dict[str, Any]
    lineage: dict[str, Any]
    folder: str


class State(_Shape):
    """``state.json``: where the newest state of several ranks is."""

    fingerprint: str
    step: Count
    ranks: Size
    folder: str


class RankState(_Shape):
    """``rank-<n>.json``: a rank's part of a saved state; ``pieces`` are its shards."""

    parts: dict[str, Any]
    rng: dict[str, Any]
    pieces: dict[str, Any]


class Piece(_Shape):
    """A rank's rows of a sharded tensor."""

    first: Count
    rows: Count
    shape: list[Count]


class ShardIndex(_Shape):
    """``model.safetensors.index.json``: the shard of each tensor."""

    weight_map: dict[str, str]


class Head(_Shape):
    """``reward_head.json``."""

    kind: Literal["mlp", "scalar"]
    pooling: Literal["last", "mean", "sequence"]
    widths: Annotated[list[Size], Field(min_length=1, max_length=64)]
    pad_id: NotRequired[Count | None]


class ModelConfig(_Shape, total=False):
    """``config.json`` of the Llama and Mamba families; the sizes are those of Hugging Face."""

    model_type: Required[str]
    vocab_size: Required[Size]
    hidden_size: Required[Size]
    num_hidden_layers: Required[Size]
    num_attention_heads: Size
    num_key_value_heads: Size | None
    head_dim: Size | None
    intermediate_size: Size
    max_position_embeddings: Size
    rms_norm_eps: Positive
    rope_theta: Positive | None
    rope_scaling: dict[str, Any] | None
    rope_parameters: dict[str, Any] | None
    tie_word_embeddings: bool
    use_sliding_window: bool | None
    sliding_window: Size | None
    max_window_layers: Count
    layer_types: list[str] | None
    state_size: Size
    conv_kernel: Size
    expand: Size
    time_step_rank: Size | Literal["auto"]
    layer_norm_epsilon: Positive
    use_bias: bool
    use_conv_bias: bool
    bos_token_id: Count | None
    eos_token_id: Count | list[Count] | None
    pad_token_id: int | None


class GenerationFile(_Shape, total=False):
    """``generation_config.json``: the ids; its other settings are carried over as they are."""

    bos_token_id: Count | list[Count] | None
    eos_token_id: Count | list[Count] | None
    pad_token_id: int | None


class RopeParameters(_Shape, total=False):
    """``rope_parameters`` or ``rope_scaling`` in ``config.json``."""

    rope_theta: Positive | None
    rope_type: str
    type: str
    partial_rotary_factor: Positive | None
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Size


class _SpecialToken(_Shape, total=False):
    content: Required[str]
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _NamedTemplate(_Shape):
    name: str
    template: str


_Special = str | _SpecialToken | None


class TokenizerConfig(_Shape, total=False):
    """``tokenizer_config.json`` and ``special_tokens_map.json``."""

    bos_token: _Special
    eos_token: _Special
    unk_token: _Special
    sep_token: _Special
    pad_token: _Special
    cls_token: _Special
    mask_token: _Special
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _SpecialToken] | None
    chat_template: str | dict[str, str] | list[_NamedTemplate] | None


def read_record(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    """A record, empty where there is no file.

    Raises UserError naming file and key, and ending with ``remedy``, where it is damaged.
    """
    found = read_json_if_present(path, remedy)
    return {} if found is None else check(found, shape, str(path), remedy)


def read_record_to_show(path: Path, shape: Any) -> dict[str, Any]:
    """A record that nothing depends on, empty where it is missing or damaged."""
    try:
        return read_record(path, shape, "")
    except UserError:
        return {}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``: ``step`` and figures, NaN for null; without a last line truncated by a kill.

    Raises UserError naming the row that is damaged.
    """
    rows = []
    for number, row in enumerate(read_appended_rows(path), 1):
        where, remedy = f"{path}, row {number}", "repair or remove this line"
        check(row, _Step, where, remedy)
        rows.append(check(row, dict[str, Figure], where, remedy))
    return rows


def check(value: Any, shape: Any, where: str, remedy: str) -> dict[str, Any]:
    """``value`` in its shape.  Raises UserError naming ``where`` and the key whose value has another type, or is missing."""
    try:
        found: dict[str, Any] = _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {_fault(error)}; {remedy}") from None
    return found


def check_json(text: Any, where: str, remedy: str) -> dict[str, Any]:
    """The object in a JSON text of a database.  Raises UserError naming ``where``."""
    if not isinstance(text, str):
        raise UserError(f"{where}: is not text; {remedy}")
    try:
        found = parse_json(text, where)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: is not a JSON object; {remedy}")
    return dict(found)


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _fault(error: ValidationError) -> str:
    """``metrics.loss: expected a valid number, found 'x'``."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    if len(parts) > 1 and parts[-1] in _MEMBERS:  # pydantic's names of the members of a union
        parts.pop()
    key = shorten(".".join(parts), 80)
    if first["type"] == "missing":
        return f"has no {key!r}"
    wanted = first["msg"].removeprefix("Input should be ").replace("String should match pattern", "text of the form")
    value = shorten(first["input"], 60)
    found = repr(value) if isinstance(first["input"], str) else value
    return f"{key}: expected {wanted}, found {found}".removeprefix(": ")
