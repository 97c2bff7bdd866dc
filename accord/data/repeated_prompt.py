"""Pairs whose replies both repeat the prompt at their start, where it would be learned as a part of the reply."""

from __future__ import annotations

from accord.data.rows import Prompt, Reply


def without_repeated_prompt(prompt: Prompt, replies: tuple[Reply, ...], chat: bool) -> tuple[Reply, ...] | None:
    """The replies without the prompt at their start; None where not all of them begin with it.

    ``chat``: whether a template sets replies apart from their prompts, so that space between both is not text.
    """
    texts = [reply for reply in replies if isinstance(reply, str)]
    if not (isinstance(prompt, str) and prompt.strip() and texts and len(texts) == len(replies)):
        return None
    if not all(text.startswith(prompt) for text in texts):
        return None
    rest = [text[len(prompt) :] for text in texts]
    return tuple(text.lstrip() for text in rest) if chat else tuple(rest)
