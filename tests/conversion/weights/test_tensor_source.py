"""Memory that JAX's CPU backend adopts without a copy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from conversion.weights.tensor_source import aligned_empty


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("shape", [(), (1,), (7, 11), (3, 5, 2)])
def test_arrays_start_on_a_border_of_64_bytes(shape: tuple[int, ...], dtype: type) -> None:
    array = aligned_empty(shape, np.dtype(dtype))
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable
