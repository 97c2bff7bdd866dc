"""The sections of benchmarks/gpu.py, each a function of a ``Bench`` that returns rows."""
