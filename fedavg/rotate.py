"""Flattening a vector by a public random rotation, so that no coordinate is much larger than the others.

Random signs, then a real Fourier transform made orthonormal: norms are kept, every length has its own
transform (nothing is padded), and for a vector that does not know the signs a coordinate of the result is
nearly normal with variance norm^2 / dim (Kairouz, Liu, Steinke 2021, section 4.1, use the Walsh-Hadamard
transform to the same end, whose length is a power of two). Flat vectors need fewer bits.

It hides nothing: the seed is public. What privacy needs is checked afterwards, on the integers.
"""

from __future__ import annotations

import numpy as np

from fedavg.params import Floats
from secagg.labels import Label
from secagg.randomness import seeded


def rotate(values: Floats, seed: bytes) -> Floats:
    """`values` (float64, one dimension) rotated; `seed` is public, any bytes, the same for all clients."""
    n = values.size
    if n < 2:
        return values.copy()
    spectrum = np.fft.rfft(values * _signs(n, seed), norm="ortho")
    out = np.empty(n)
    inner = (n + 1) // 2  # frequencies with a real and an imaginary part, zero's included
    out[0] = spectrum[0].real
    out[1:inner] = spectrum[1:inner].real * np.sqrt(2.0)
    out[inner : 2 * inner - 1] = spectrum[1:inner].imag * np.sqrt(2.0)
    if n % 2 == 0:
        out[-1] = spectrum[-1].real
    return out


def unrotate(values: Floats, seed: bytes) -> Floats:
    """The inverse of `rotate`."""
    n = values.size
    if n < 2:
        return values.copy()
    inner = (n + 1) // 2
    spectrum = np.empty(n // 2 + 1, np.complex128)
    spectrum[0] = values[0]
    spectrum[1:inner].real = values[1:inner] / np.sqrt(2.0)
    spectrum[1:inner].imag = values[inner : 2 * inner - 1] / np.sqrt(2.0)
    if n % 2 == 0:
        spectrum[-1] = values[-1]
    back: Floats = np.fft.irfft(spectrum, n, norm="ortho") * _signs(n, seed)
    return back


def _signs(n: int, seed: bytes) -> Floats:
    stream = seeded(Label.ROTATION.value.encode(), seed)
    bits = np.unpackbits(np.frombuffer(stream(-(-n // 8)), np.uint8))[:n]
    return 1.0 - 2.0 * bits.astype(np.float64)
