"""Any other causal language model of transformers as a ``Backbone``: correct, but slow.

Every text is a padded row, and a step reads the whole text again.  That is correct for attention and state-space models
alike, without their caches, and costs a factor of the length.  Faster families have a file of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from accord.errors import UserError
from accord.io.readers import shorten
from accord.models.backbone import Backbone
from accord.models.generation_config import write_generation
from accord.types import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(slots=True)
class TextCache:
    """The texts so far, one list of tokens a row."""

    texts: list[list[int]]

    def select(self, rows: Tensor) -> TextCache:
        """See ``Cache.select``."""
        return TextCache([list(self.texts[row]) for row in rows.tolist()])


class CausalLM(Backbone):
    """A causal model of transformers, with dropout off also after ``train()``.

    Raises UserError naming the model type where the parts do not give the model's own logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = cast(Any, model)  # its methods are not typed
        self.model.eval()
        self.kind: str = self.model.config.model_type
        base, head = self.model.base_model, self.model.get_output_embeddings()
        if base is self.model or head is None:
            raise UserError(f"model type {self.kind!r}: has no language-model head separate from its body")
        self.vocab_size, self.width = (int(size) for size in head.weight.shape)
        self.max_positions = _learned_positions(self.model)
        self._tied = _tied_names(self.model)
        self._accepts = set(inspect.signature(base.forward).parameters)
        _check(self)

    def train(self, mode: bool = True) -> CausalLM:
        super().train(mode)
        self.model.eval()  # dropout would make the ratio of new to old probabilities differ from 1 at the first step
        return self

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """See ``Backbone.forward``.  A shared prompt is read once for each of its texts."""
        rows, columns = packed.texts.shape
        inputs: dict[str, Any] = {
            "input_ids": packed.tokens[packed.texts.clamp(min=0)],  # after a text's end: any token, which is masked
            "attention_mask": (packed.texts >= 0).long(),
            "position_ids": torch.arange(columns, device=packed.texts.device).expand(rows, -1),
            "use_cache": False,
        }
        found = self.model.base_model(**{key: value for key, value in inputs.items() if key in self._accepts})
        states: Tensor = found[0]
        states = states.flatten(0, 1).index_select(0, packed.slots)
        return states if at is None else states[at]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D), with the scale (Cohere, Granite) and the soft cap (Gemma) that the config names."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        config = self.model.config
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits if factor == 1.0 else logits * factor
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, TextCache]:
        """See ``Backbone.prefill``; without gradients.  ``capacity`` is not needed here."""
        if bool((packed.parents >= 0).any()):
            raise ValueError("prefill reads prompts: segments without parents")
        texts = [part.tolist() for part in torch.tensor_split(packed.tokens, packed.offsets[1:-1].cpu())]
        return self(packed).index_select(0, packed.last), TextCache(texts)

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: TextCache) -> Tensor:
        """See ``Backbone.step``; without gradients.  Reads each text again in full."""
        for text, token in zip(cache.texts, tokens.tolist(), strict=True):
            text.append(token)
        packed = Packed.of(cache.texts).to(tokens.device)
        return self(packed).index_select(0, packed.last)

    @classmethod
    def open(cls, directory_or_id: str | Path) -> CausalLM:
        """Opens a model folder, or a model by its name on the hub, in float32; never runs code from the model folder.

        Raises UserError naming the folder where transformers cannot read it.
        """
        from transformers import AutoModelForCausalLM

        name = str(directory_or_id)
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever a damaged file leads it to
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{name}: transformers cannot open this model ({shorten(reason, 300)})") from error
        return cls(model)

    def save(self, directory: str | Path) -> None:
        """Writes the folder as transformers does, with the settings of ``generation_config.json`` as they came."""
        with self._plain_generation():
            self.model.save_pretrained(str(directory))
        write_generation(directory, self.generation, self._listed())

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Backbone.exported``; a tensor that transformers ties to another one is left out."""
        plain = {name.removeprefix("model."): x for name, x in state.items()}
        return {name: x for name, x in plain.items() if name not in self._tied}

    def save_config(self, directory: str) -> None:
        """Writes ``config.json`` and ``generation_config.json`` as transformers does."""
        self.model.config.save_pretrained(directory)
        write_generation(directory, self.generation, self._listed())

    def _listed(self) -> dict[str, Any]:
        """The special ids that the config names."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {name: getattr(self.model.config, name, None) for name in names}

    @contextmanager
    def _plain_generation(self) -> Iterator[None]:
        """Within, the model has no settings of generation: transformers refuses to save some that it reads."""
        kept, self.model.generation_config = self.model.generation_config, type(self.model.generation_config)()
        try:
            yield
        finally:
            self.model.generation_config = kept


def _tied_names(model: nn.Module) -> set[str]:
    """Parameters that are another one under a second name."""
    seen: set[int] = set()
    tied: set[str] = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in seen:
            tied.add(name)
        seen.add(id(weight))
    return tied


def _learned_positions(model: nn.Module) -> int | None:
    """The rows of an embedding of positions (GPT-2's ``wpe``; OPT has two more than positions); None where there is none."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last):
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None


@torch.no_grad()
def _check(ours: CausalLM) -> None:
    """Two short texts, one the beginning of the other, must get the logits that the whole model gives each alone.

    That covers the head, the padding and causality: a model that sees the future gives the beginning other logits.
    """
    device = next(ours.model.parameters()).device
    texts: Sequence[list[int]] = [[token % ours.vocab_size for token in text] for text in ([5, 6, 7], [5, 6])]
    packed = Packed.of(texts).to(device)
    found = ours.logits(ours(packed)).float()
    alone = [ours.model(input_ids=torch.tensor([text], device=device)).logits[0] for text in texts]
    wanted = torch.cat([*alone, alone[1]]).float()
    found = torch.cat([found, found[:2]])
    tolerance = 1e-4 if ours.model.dtype is torch.float32 else 3e-2
    slack = tolerance * float(wanted.abs().max())
    if found.shape != wanted.shape or not torch.allclose(found, wanted, tolerance, slack):
        raise UserError(
            f"model type {ours.kind!r}: its body and head, or its padding, do not give its own logits, "
            "or it is not causal; it cannot be trained here"
        )
