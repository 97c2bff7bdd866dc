"""Settings of the stage fuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from accord.config.common import Positive, Stage
from accord.config.section import Section


class FuseSource(Section):
    """One of the models that are merged."""

    model: str
    """A stage or a folder."""
    weight: float = 1.0
    """linear: of the model; task_arithmetic, ties, dare_*: of its difference from the base."""
    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    """ties: the share of the difference's entries that stays, the largest; dare_*: with which each entry stays."""

    def __repr__(self) -> str:
        """Short in ``--help``: the name alone, where nothing else is set."""
        return self.model if self.weight == self.density == 1 else super().__repr__()


class FuseConfig(Stage):
    """Merges models of one architecture into one: averages, spherical averages, task vectors, steps to a reference."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    method: Literal["linear", "slerp", "interpolate", "task_arithmetic", "ties", "dare_linear", "dare_ties"] = "linear"
    """linear: weighted average (of reward models: WARM); slerp: between two on the arc; interpolate: base + t (model - base)
    (WARP's LITI); the others add differences from the base: all of them, trimmed with elected signs, or thinned at random."""
    models: Annotated[tuple[FuseSource, ...], Field(min_length=1)] = (FuseSource(model="sft"), FuseSource(model="dpo"))
    """What is merged, by any label (models.a.model=sft models.a.weight=0.3) or as a list; the first one gives config,
    tokenizer and kind."""
    base: str = ""
    """Where differences start: a stage or a folder; slerp: the end that t=0 stands for, if not the first model."""
    t: float = 0.5
    """slerp: 0 is the first model, 1 the second; interpolate: 0 is the base, 1 the model, and beyond is allowed."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null: for linear and ties, not for the others, as mergekit does."""
    scaling: float = Field(default=1.0, validation_alias=AliasChoices("scaling", "lambda"))
    """Task vectors are multiplied by this before the base is added; it may be written lambda."""
    dtype: Literal["first", "float32", "float16", "bfloat16"] = "first"
    """What is written: each tensor as the first model has it, or all in one kind.  Computed in float32 always."""
    calibrate: str = ""
    """Reward models: preferences (a stage, a folder or a file) on whose replies the merged scores are centered and scaled;
    empty: they keep the scale of the first model, which is about right."""
    max_length: Positive = 256
    """calibrate: tokens of prompt and reply together."""

    @property
    def normalizes(self) -> bool:
        """``normalize`` with the method's default."""
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, models: Any) -> Any:
        """Labels are for the person who writes; a bare name is a model of weight 1."""
        if isinstance(models, Mapping):
            models = list(models.values())
        return [{"model": m} if isinstance(m, str) else m for m in models] if isinstance(models, list) else models

    @model_validator(mode="after")
    def _fits(self) -> FuseConfig:
        names = [source.model for source in self.models]
        if self.method == "linear":
            if self.base:
                raise ValueError("method=linear takes no base; leave it out, or use interpolate or task_arithmetic")
            if self.normalizes and abs(sum(source.weight for source in self.models)) < 1e-8:
                raise ValueError("the weights sum to zero and cannot be normalized; change one, or set normalize=false")
        elif self.method == "slerp":
            ends = [*([self.base] if self.base and self.base not in names else []), *names]
            if len(ends) != 2:
                raise ValueError(f"method=slerp goes from one model to another, but {len(ends)} are named")
        elif not self.base:
            raise ValueError(f"method={self.method} needs base, the model that differences are taken from")
        elif self.method == "interpolate" and len(names) != 1:
            raise ValueError(f"method=interpolate takes one model beside the base, but {len(names)} are named")
        self._heeded()
        return self

    def _heeded(self) -> None:
        """Settings that the method does not look at are mistakes."""
        deltas = self.method not in ("linear", "slerp", "interpolate")
        ignored = {
            "models.*.density": self.method not in ("ties", "dare_linear", "dare_ties")
            and any(source.density < 1 for source in self.models),
            "models.*.weight": self.method in ("slerp", "interpolate") and any(s.weight != 1 for s in self.models),
            "t": self.method not in ("slerp", "interpolate") and self.t != 0.5,
            "scaling": not deltas and self.scaling != 1,
            "normalize": self.method in ("slerp", "interpolate") and self.normalize is not None,
        }
        for name, idle in ignored.items():
            if idle:
                raise ValueError(f"{name} has no effect with method={self.method}; leave it out")
