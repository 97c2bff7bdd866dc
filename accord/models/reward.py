"""Reward models: an MLP on features (as specified), a scalar head on a whole language model, and those of transformers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accord.errors import UserError
from accord.functional.masked import wide
from accord.io.atomic import write_text
from accord.io.records import Head, read_record
from accord.models.backbone import Backbone
from accord.models.hf_format import read_tensors, write_tensors
from accord.models.open import open_backbone, require_finite
from accord.models.sequence_classification import is_classifier, open_classifier
from accord.types import Packed

Pooling = Literal["last", "mean", "sequence"]
"""Features of a reply: at its last token, their mean, or at the last token of its whole text that is not the pad token."""
HEAD_FILE = "reward_head.safetensors"
HEAD_CONFIG = "reward_head.json"


class RewardMLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: features (B, input_dim) → scores (B,)."""

    def __init__(self, input_dim: int = 128, hidden_dim: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        self.input_dim = input_dim
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), 1]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.ReLU()] if i else []
            layers.append(nn.Linear(before, after))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.input_dim:
            raise ValueError(f"features: shape {tuple(features.shape)}, expected (B, {self.input_dim})")
        return self.layers(features).squeeze(-1)  # type: ignore[no-any-return]


class ScalarHead(nn.Module):
    """A linear score of normalized features, initialized N(0, 1/√(d+1)) with zero bias (Stiennon et al. 2020).

    The layer norm (no weights) gives the head features of unit scale whatever the backbone's; without it the head's
    learning rate would have to be tuned for every model.  ``measure`` then centers and scales each feature by
    itself: in a large pretrained model a few of them, the same in every text, are a hundred times larger than the
    rest and would hide the differences between texts.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Stores mean and deviation of each of the features (N, D) of N texts, N ≥ 2, before training."""
        features = F.layer_norm(wide(features), features.shape[-1:])
        self.centre.copy_(features.mean(0))
        self.spread.copy_(features.std(0).clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        features = F.layer_norm(wide(features), features.shape[-1:])
        scaled = (features - self.centre) / self.spread
        return self.linear(scaled.to(self.linear.weight.dtype)).squeeze(-1)  # type: ignore[no-any-return]


class RewardModel(nn.Module):
    """Scores of replies: backbone → pooled features → head, less the stored mean, over the stored deviation.

    ``pooling`` is the hidden state at the reply's last token, or the mean over the reply's tokens.  ``sequence`` is that of
    transformers' models for sequence classification, which read a text to the end that its template writes, and pass over
    ``pad_id``.  ``mean`` and ``deviation`` are measured after training on reference replies, so that the scores PPO sees are
    centered.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, backbone: Backbone, head: RewardMLP | ScalarHead, pooling: Pooling, pad_id: int | None = None
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.backbone = backbone
        self.head = head
        self.pooling = pooling
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def features(self, packed: Packed, segments: Tensor) -> Tensor:
        """(B, D) features of the replies that are the named segments (B,)."""
        hidden = self.backbone(packed)
        if self.pooling == "last":
            return hidden[packed.last[segments]]
        if self.pooling == "sequence":
            return hidden[last_read(packed, segments, self.pad_id)]
        index, owner = packed.span(segments)
        lengths = torch.bincount(owner, minlength=len(segments))
        states = wide(hidden[index])
        sums = states.new_zeros(len(segments), states.shape[1])
        return (sums.index_add(0, owner, states) / lengths[:, None]).to(self.mean.dtype)

    def raw(self, packed: Packed, segments: Tensor) -> Tensor:
        """(B,) scores before centering: the training loss is on these."""
        return self.head(self.features(packed, segments))  # type: ignore[no-any-return]

    def forward(self, packed: Packed, segments: Tensor) -> Tensor:
        """(B,) centered scores."""
        return (self.raw(packed, segments) - self.mean) / self.deviation

    def normalize(self, raw: Tensor) -> None:
        """Stores mean and deviation of raw scores (N,)."""
        self.mean.copy_(raw.mean())
        self.deviation.copy_(raw.std(correction=0).clamp(min=1e-6))

    def head_state(self) -> dict[str, Tensor]:
        """Everything but the backbone."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}

    def save(self, directory: str) -> None:
        """Writes the backbone in its own layout, head and statistics beside it."""
        self.backbone.save(directory)
        self.save_head(directory)

    def save_head(self, directory: str) -> None:
        """Writes everything but the backbone."""
        write_tensors(Path(directory) / HEAD_FILE, {k: v.contiguous() for k, v in self.head_state().items()})
        kind = "mlp" if isinstance(self.head, RewardMLP) else "scalar"
        shape = [m.out_features for m in self.head.modules() if isinstance(m, nn.Linear)]
        described: dict[str, object] = {"kind": kind, "pooling": self.pooling, "widths": shape}
        if self.pooling == "sequence":
            described["pad_id"] = self.pad_id
        write_text(Path(directory) / HEAD_CONFIG, json.dumps(described))

    @classmethod
    def open(cls, directory: str | Path) -> RewardModel:
        """A reward model of ours, or one for sequence classification with one label, as TRL trains it.

        Raises UserError where the folder holds no reward model.
        """
        source = Path(directory)
        if not has_head(source) and is_classifier(source):
            return cls._of_classifier(source)
        if not (source / HEAD_CONFIG).exists():
            what = "a language model" if (source / "config.json").exists() else "no model"
            raise UserError(
                f"{source}: no {HEAD_CONFIG} here, so this is not a reward model but {what}; name a reward model, or"
                " train one with 'accord reward'."
            )
        shape = read_record(source / HEAD_CONFIG, Head, "copy the whole folder again")
        backbone = open_backbone(source)
        state = read_tensors(source / HEAD_FILE)
        head: RewardMLP | ScalarHead = ScalarHead(backbone.width)
        if shape["kind"] == "mlp":
            widths = shape["widths"]
            sizes = (backbone.width, widths[0] if len(widths) > 1 else 1, len(widths))
            with torch.device("meta"):  # as large as the file says, which may be damaged
                _require_tensors(source, cls(backbone, RewardMLP(*sizes), shape["pooling"]), state)
            head = RewardMLP(*sizes)
        model = cls(backbone, head, shape["pooling"], shape.get("pad_id"))
        require_finite(source / HEAD_FILE, state.items())
        _require_tensors(source, model, state)
        model.load_state_dict(state, strict=False)
        backbone.eval()
        return model

    @classmethod
    def _of_classifier(cls, source: Path) -> RewardModel:
        found = open_classifier(source)
        require_finite(source, found.body.named_parameters())
        head = RewardMLP(found.body.width, 1, 1)
        (linear,) = (m for m in head.modules() if isinstance(m, nn.Linear))
        with torch.no_grad():
            linear.weight.copy_(found.score)
            linear.bias.zero_()
        model = cls(found.body, head, "sequence", found.pad_id)
        found.body.eval()
        return model


def last_read(packed: Packed, segments: Tensor, pad_id: int | None) -> Tensor:
    """(B,) the index of the last token of each segment's whole text that is not ``pad_id``; the first where all are."""
    at = packed.last[segments]
    while pad_id is not None:
        back = (packed.tokens[at] == pad_id) & (packed.previous[at] >= 0)
        if not back.any():
            break
        at = torch.where(back, packed.previous[at], at)
    return at


def _require_tensors(source: Path, model: RewardModel, state: dict[str, Tensor]) -> None:
    wanted = {name: tensor.shape for name, tensor in model.head_state().items()}
    if {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise UserError(f"{source / HEAD_FILE}: does not fit the head that {HEAD_CONFIG} describes.")


def open_trunk(directory: str | Path) -> Backbone:
    """The body of a language model or of a reward model, to put another head on.  Raises UserError."""
    if not has_head(directory) and is_classifier(directory):
        return open_classifier(directory).body
    return open_backbone(directory)


def has_head(directory: str | Path) -> bool:
    """Whether a folder holds a reward model of ours."""
    return (Path(directory) / HEAD_CONFIG).exists()


def is_reward_model(directory: str | Path) -> bool:
    """Whether a folder holds a reward model, of ours or of transformers."""
    return has_head(directory) or is_classifier(directory)
