"""Settings of the correction for replies and steps that an older policy sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from accord.config.numbers import Coefficient, PositiveCoefficient
from accord.config.section import Section


class Correction(Section):
    """How PPO corrects for actions that an older policy sampled."""

    kind: Literal["auto", "none", "token_tis", "sequence_tis", "vtrace", "decoupled"] = "auto"
    """Importance weights of the policy loss: per token (token_tis) or per reply (sequence_tis), truncated at cap; per token and
    dropped above cap (decoupled); or V-trace's advantages and value targets (vtrace).  auto: token_tis where replies may be
    older than the policy, else none."""
    cap: Coefficient = 2.0
    """Largest weight of token_tis, sequence_tis and decoupled; 0: no limit."""
    rho_bar: PositiveCoefficient = 1.0
    """vtrace: limit of the ratio that weights TD errors and the policy gradient.  It decides which policy is valued."""
    c_bar: Coefficient = 1.0
    """vtrace: limit of the ratio that passes corrections back in time, at most rho_bar.  It decides only how fast."""

    @model_validator(mode="after")
    def _fits(self) -> Correction:
        _require_order(self.c_bar, self.rho_bar)
        return self

    def resolved(self, may_be_stale: bool) -> Correction:
        """This correction with ``auto`` replaced."""
        kind = "token_tis" if may_be_stale else "none"
        return self.model_copy(update={"kind": kind}) if self.kind == "auto" else self


class StepCorrection(Section):
    """How PPO on environment steps corrects for actions that an older policy took."""

    kind: Literal["auto", "none", "vtrace"] = "auto"
    """vtrace: V-trace's advantages and value targets.  auto: vtrace where steps may be older than the policy, else none."""
    rho_bar: PositiveCoefficient = 1.0
    """Limit of the ratio that weights TD errors and the policy gradient.  It decides which policy is valued."""
    c_bar: Coefficient = 1.0
    """Limit of the ratio that passes corrections back in time, at most rho_bar.  It decides only how fast."""

    @model_validator(mode="after")
    def _fits(self) -> StepCorrection:
        _require_order(self.c_bar, self.rho_bar)
        return self

    def resolved(self, may_be_stale: bool) -> StepCorrection:
        """This correction with ``auto`` replaced."""
        kind = "vtrace" if may_be_stale else "none"
        return self.model_copy(update={"kind": kind}) if self.kind == "auto" else self


def _require_order(c_bar: float, rho_bar: float) -> None:
    if c_bar > rho_bar:
        raise ValueError(f"correction.c_bar ({c_bar}) must not exceed correction.rho_bar ({rho_bar})")
