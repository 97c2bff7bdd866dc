"""The losses: pure functions of named tensors, each a masked sum over an explicit count, with detached metrics.

Metrics are means of the same kind, so that micro-batches, ranks and workers add exactly.
"""
