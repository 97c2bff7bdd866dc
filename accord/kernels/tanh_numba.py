"""The two element-wise passes of a tanh network, compiled: NumPy's tanh alone takes as long as the matrix products.

Loading the compiler costs half a second, so this is for long runs.

Plain form: ``numpy.tanh``, compared in ``tests/training/test_numpy_updater.py``.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")  # type: ignore[untyped-decorator]
def tanh_of_sum(x: np.ndarray, bias: np.ndarray) -> None:
    """In place: x (B, N) becomes tanh(x + bias (N,)), float32, to 3e-7.

    A ratio of odd and even polynomials with the coefficients of Eigen's ``ptanh``; beyond ±7.9 float32's tanh is 1.
    """
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            t = x[row, column] + bias[column]
            t = min(max(t, np.float32(-7.90531110763549805)), np.float32(7.90531110763549805))
            s = t * t
            p = np.float32(-2.76076847742355e-16)
            p = p * s + np.float32(2.00018790482477e-13)
            p = p * s + np.float32(-8.60467152213735e-11)
            p = p * s + np.float32(5.12229709037114e-08)
            p = p * s + np.float32(1.48572235717979e-05)
            p = p * s + np.float32(6.37261928875436e-04)
            p = p * s + np.float32(4.89352455891786e-03)
            q = np.float32(1.19825839466702e-06)
            q = q * s + np.float32(1.18534705686654e-04)
            q = q * s + np.float32(2.26843463243900e-03)
            q = q * s + np.float32(4.89352518554385e-03)
            x[row, column] = t * p / q


@numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")  # type: ignore[untyped-decorator]
def through_tanh(gradient: np.ndarray, activation: np.ndarray, to_bias: np.ndarray) -> None:
    """In place: the gradient (B, N) of tanh's value becomes that of its argument; to_bias (N,) its sum over rows."""
    to_bias[:] = 0
    for row in range(gradient.shape[0]):
        for column in range(gradient.shape[1]):
            value = activation[row, column]
            passed = gradient[row, column] * (np.float32(1) - value * value)
            gradient[row, column] = passed
            to_bias[column] += passed
