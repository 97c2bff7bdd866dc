"""Chat with a model in the terminal, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from accord.config.reply import reply_settings
from accord.data.chat import prompt_to_continue
from accord.data.reply_text import reply_text, streamed
from accord.data.rows import Message
from accord.data.text_notes import unknown_in
from accord.errors import UserError
from accord.io.readers import as_characters
from accord.models.backbone import Backbone
from accord.models.reward import is_reward_model
from accord.rollout.generate import Decoding, stream
from accord.runtime.console import console
from accord.runtime.seeds import derive


def chat(path: str, temperature: float, top_p: float, max_new_tokens: int, seed: int, system: str) -> int:
    """Replies to each line until an empty line or the end of the input; returns the exit code.

    Raises UserError where there is no language model.
    """
    from accord.training.artifact import model_folder, open_policy, open_tokenizer

    settings = reply_settings("chat", temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    source = model_folder(path)
    if is_reward_model(source):
        raise UserError(f"{path}: is a reward model, which scores replies and writes none; give a language model.")
    tokenizer = open_tokenizer(str(source))
    backbone = open_policy(str(source), tokenizer, torch.device("cpu")).requires_grad_(False)
    ids = (tokenizer.eos_id, tokenizer.pad_id)
    messages: list[Message] = [{"role": "system", "content": as_characters(system)}] if system else []
    for note in backbone.notes:
        console.print(f"{path}: {note}", markup=False)
    noted = False
    console.print(f"{path}: type a message; an empty line ends the chat", markup=False)
    while line := _read_line():
        messages.append({"role": "user", "content": line})
        prompt = prompt_to_continue(tokenizer, messages if tokenizer.chat_template else line)
        if not noted and (unknown := unknown_in(tokenizer, prompt)):
            noted = True
            console.print(
                f"note: {unknown} characters are not in this model's vocabulary; it does not see them", markup=False
            )
        tokens: list[int] = []
        budget = room_for_reply(path, backbone, len(prompt), settings.max_new_tokens)
        decoding = Decoding(budget, *ids, settings.temperature, settings.top_p)
        sampled = stream(backbone, prompt, decoding, derive(settings.seed, "chat", len(messages)))
        for part in streamed(tokenizer, prompt, recorded(sampled, tokens)):
            print(part, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": reply_text(tokenizer, prompt, tokens)})
    return 0


def room_for_reply(path: str, backbone: Backbone, prompt: int, max_new_tokens: int) -> int:
    """The tokens that a reply to ``prompt`` tokens may have.

    Raises UserError where the model's positions end with the prompt.
    """
    if backbone.max_positions is None:
        return max_new_tokens
    if prompt >= backbone.max_positions:
        raise UserError(
            f"{path}: the conversation has {prompt} tokens, and the model has positions for {backbone.max_positions}; start a"
            " new chat, or write less."
        )
    return min(max_new_tokens, backbone.max_positions - prompt)


def recorded(tokens: Iterable[int], found: list[int]) -> Iterator[int]:
    """The tokens, each appended to ``found`` on its way."""
    for token in tokens:
        found.append(token)
        yield token


def _read_line() -> str:
    """The next line, empty at the end of the input; what is no character (half of a surrogate pair) becomes U+FFFD."""
    try:
        return as_characters(input("> ").strip())
    except EOFError:
        return ""
