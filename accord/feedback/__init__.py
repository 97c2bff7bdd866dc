"""The store of preferences: prompts, replies, pairs, annotators and their votes."""
