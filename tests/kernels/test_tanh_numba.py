"""The compiled tanh against NumPy's."""

from __future__ import annotations

import numpy as np


def test_the_compiled_tanh_equals_numpys() -> None:
    from accord.kernels.tanh_numba import tanh_of_sum, through_tanh

    x = np.linspace(-14, 14, 40_001, dtype=np.float32).reshape(1, -1)
    bias = np.full(40_001, 0.25, dtype=np.float32)
    y = x.copy()
    tanh_of_sum(y, bias)
    assert np.abs(y - np.tanh(x.astype(np.float64) + 0.25)).max() < 3e-7
    gradient, activation = np.random.default_rng(0).normal(size=(2, 30, 7)).astype(np.float32)
    mine, total = gradient.copy(), np.ones(7, dtype=np.float32)
    through_tanh(mine, activation, total)
    np.testing.assert_allclose(mine, gradient * (1 - activation**2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, (gradient * (1 - activation**2)).sum(0), rtol=1e-5, atol=1e-5)
