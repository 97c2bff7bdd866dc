"""Settings of the stage fuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from accord.config.common import DatedStage
from accord.config.numbers import Context, PositiveShare, Weight
from accord.config.section import Section


class FuseSource(Section):
    """One model of a merge."""

    model: str
    """A stage or a folder."""
    weight: Weight = 1.0
    """Weight of the model (linear) or of its task vector (task_arithmetic, ties, dare_*)."""
    density: PositiveShare = 1.0
    """ties: fraction of the task vector's entries to keep, the largest; dare_*: probability of keeping each entry."""

    def __repr__(self) -> str:
        """The model alone where nothing else is set, for ``--help``."""
        return self.model if self.weight == self.density == 1 else super().__repr__()


class FuseConfig(DatedStage):
    """Merges models of one architecture: linear average, SLERP, task vectors, or interpolation with a reference."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    method: Literal["linear", "slerp", "interpolate", "task_arithmetic", "ties", "dare_linear", "dare_ties"] = "linear"
    """linear: weighted average (of reward models: WARM); slerp: spherical interpolation of two models; interpolate:
    base + t (model - base) (WARP's LITI); task_arithmetic, ties, dare_*: base plus task vectors, as they are, trimmed
    with elected signs, or randomly dropped."""
    models: Annotated[tuple[FuseSource, ...], Field(min_length=1)] = (FuseSource(model="sft"), FuseSource(model="dpo"))
    """Models to merge, under any labels (models.a.model=sft models.a.weight=0.3) or as a list; config, tokenizer and kind
    are the first model's."""
    base: str = ""
    """Base of the task vectors, a stage or a folder; slerp: the model at t=0, if not the first one."""
    t: Weight = 0.5
    """slerp: 0 is the first model, 1 the second; interpolate: 0 is the base, 1 the model; values outside are allowed."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null: as in mergekit, for linear and ties only."""
    scaling: Weight = Field(default=1.0, validation_alias=AliasChoices("scaling", "lambda"))
    """Factor of the summed task vectors; may be written lambda."""
    dtype: Literal["first", "float32", "float16", "bfloat16"] = "first"
    """Dtype of the written tensors; first: as in the first model.  Computed in float32."""
    calibrate: str = ""
    """Reward models: preferences (a stage, a folder or a file) on which the merged scores are normalized; empty: keep the
    first model's statistics."""
    max_length: Context = 256
    """calibrate: maximum tokens of prompt and reply together."""

    @property
    def normalizes(self) -> bool:
        """``normalize`` with the method's default."""
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, models: Any) -> Any:
        """Labels carry no meaning; a bare name is a model of weight 1."""
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
        self._refuse_ignored()
        return self

    def _refuse_ignored(self) -> None:
        """Raises ValueError for settings that the method ignores."""
        deltas = self.method not in ("linear", "slerp", "interpolate")
        ignored = {
            "models.*.density": self.method not in ("ties", "dare_linear", "dare_ties")
            and any(source.density < 1 for source in self.models),
            "models.*.weight": self.method in ("slerp", "interpolate") and any(s.weight != 1 for s in self.models),
            "t": self.method not in ("slerp", "interpolate") and self.t != 0.5,
            "scaling": not deltas and self.scaling != 1,
            "normalize": self.method in ("slerp", "interpolate") and self.normalize is not None,
        }
        for name, is_ignored in ignored.items():
            if is_ignored:
                raise ValueError(f"{name} has no effect with method={self.method}; leave it out")
