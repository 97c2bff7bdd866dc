"""Any other causal language model of transformers as a ``Backbone``: correct, but slow.

Every text is a padded row, and a step reads the whole text again.  That is correct for attention and state-space models
alike, without their caches, and costs a factor of the length.  Faster families have a file of their own.
"""

from __future__ import annotations

import inspect
import re
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
from accord.models.hf_format import NeedsTransformers
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


SLOW = "opened through transformers, which is correct and slower than the Llama and Mamba families"


def slower(why: NeedsTransformers) -> str:
    """The note of a model of a fast family whose config needs transformers."""
    return f"{SLOW}, since its config.json asks for {why.what}"


class CausalLM(Backbone):
    """A causal model of transformers, with dropout off also after ``train()``.

    Raises UserError naming the model type where the parts do not give the model's own logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = cast(Any, model)  # its methods are not typed
        self.model.eval()
        self.kind: str = self.model.config.model_type
        base, head = self._body(), self.model.get_output_embeddings()
        if base is self.model or head is None:
            raise UserError(f"model type {self.kind!r}: has no language-model head separate from its body")
        self.vocab_size, self.width = (int(size) for size in head.weight.shape)
        self.max_positions = _longest_text(self.model)
        self._scale, self._cap = _scale_and_cap(self.model.config.get_text_config())
        self._tied = _tied_names(self.model)
        if self.model.get_input_embeddings().weight is not head.weight:
            for config in (self.model.config, self.model.config.get_text_config()):
                config.tie_word_embeddings = False  # also where the file's head differs from embeddings that it ties
        self.notes = _notes(self.model)
        self._accepts = set(inspect.signature(base.forward).parameters)
        try:
            sound, why = _gives_own_logits(self), ""
        except Exception as error:  # of a model that needs more inputs, such as an encoder's states
            sound, why = False, f" ({shorten(str(error).strip().partition(chr(10))[0] or type(error).__name__, 120)})"
        if not sound:
            raise UserError(
                f"model type {self.kind!r}: its body and head, or its padding, do not give its own logits, "
                f"or it is not causal; it cannot be trained here{why}"
            )

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
        found = self._body()(**{key: value for key, value in inputs.items() if key in self._accepts})
        states: Tensor = found[0]
        states = states.flatten(0, 1).index_select(0, packed.slots)
        return states if at is None else states[at]

    def _body(self) -> Any:
        """The model without its head; the model itself where it has no such part."""
        base = self.model.base_model
        return (
            base if base is not self.model else getattr(self.model, "model", base)
        )  # Llama 4's text has another prefix

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D), with the scale (Cohere, Granite, Falcon-H1) and the soft cap (Gemma) that the config names."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        logits = logits if self._scale == 1.0 else logits * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

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
        how = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
        try:
            model, found = AutoModelForCausalLM.from_pretrained(name, **how)
        except Exception as error:  # transformers raises whatever a damaged file leads it to
            raise UserError(f"{name}: {_why_not(error)}") from error
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"{name}: tensor {shorten(missing[0])} is missing ({len(missing)} in all), and would be random; download the"
                " folder again."
            )
        try:
            ours = cls(model)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if spare := sorted(found["unexpected_keys"]):
            ours.notes += (f"its tensor {shorten(spare[0])} has no place in this model and is left out",)
        return ours

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


def _scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What logits are multiplied by, and the bound that they then approach; None without one."""
    scale, cap = 1.0, None
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        cap = cap or getattr(config, name, None)
    return (scale * scaling if config.model_type == "hyperclovax" else scale / scaling), cap


def _why_not(error: Exception) -> str:
    """What keeps transformers from opening a model, and what to do."""
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return "needs code that comes with the model, which is never run; take a model that transformers has itself"
    reason = shorten(text.splitlines()[0], 300)
    if "for this kind of AutoModel" in text:
        family = text.partition("Config'>")[0].rpartition(".")[2]
        return f"is a {family or 'model'}, not a causal language model, so it cannot write replies; name a causal one"
    return f"transformers cannot open this model ({reason})"


def _longest_text(model: Any) -> int | None:
    """The number of positions of a table (GPT-2's ``wpe``, GPT-J's sinusoids, MPT's slopes; OPT has two rows too many).

    Rotary frequencies that change with the length of the text (dynamic, longrope) end where they begin to: beyond it the state
    at a token would depend on what follows.  None where there is no end.
    """
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last in ("wpe", "wpe_layer") or "position" in last):
            return module.num_embeddings - int(getattr(module, "offset", 0))
        tables = [getattr(module, table, None) for table in ("embed_positions", "pos_encoding")]
        if found := [len(table) for table in tables if isinstance(table, Tensor) and table.dim() == 2]:
            return found[0]
    config = model.config.get_text_config()
    if config.model_type == "mpt":
        return int(config.max_seq_len)
    ends = [_end_of_rope(config, rope) for rope in _ropes(config)]
    return min((end for end in ends if end is not None), default=None)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a config: one, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]


def _end_of_rope(config: Any, rope: Mapping[str, Any]) -> int | None:
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return None
    given = rope.get("original_max_position_embeddings")
    given = given or getattr(config, "original_max_position_embeddings", None)
    return int(given or config.max_position_embeddings)


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _notes(model: Any) -> tuple[str, ...]:
    """What the user of a model of transformers should know."""
    config = model.config.get_text_config()
    experts = [getattr(config, name, None) for name in EXPERTS]
    routed = any(re.search("experts?$|moe|router", type(part).__name__.lower()) for part in model.modules())
    if not routed or not any(isinstance(number, int) and number > 1 for number in experts):
        return ()
    return (
        "a mixture of experts, whose router is trained by the loss of the stage alone: the auxiliary loss that balances"
        " experts (TRL's router_aux_loss_coef) is not added",
    )


@torch.no_grad()
def _gives_own_logits(ours: CausalLM) -> bool:
    """Whether two short texts, one the beginning of the other, get the logits that the whole model gives each alone.

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
    return found.shape == wanted.shape and torch.allclose(found, wanted, tolerance, slack)
