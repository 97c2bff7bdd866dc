"""Rewards: each is a function of prompts and replies that returns one number per reply; more is better."""


def brief(prompts: list[str], replies: list[str]) -> list[float]:
    """A sentence of four words: a full stop at the end, and a penalty for every word more or less."""
    return [reply.endswith(".") - abs(len(reply.split()) - 4) / 4 for reply in replies]
