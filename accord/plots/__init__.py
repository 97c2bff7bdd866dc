"""Curves of training as SVG pictures, from metrics.jsonl; no library draws them."""
