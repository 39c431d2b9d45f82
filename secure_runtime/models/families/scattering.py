"""The scattering transform of images: wavelets, moduli and averages. A fixed function; it learns nothing.

Order 0 is the image averaged by a Gaussian phi at scale 2^J. Order 1 is | x * psi_(j,t) | averaged, for each scale
j < J and angle t. Order 2 is | | x * psi_(j,t) | * psi_(j',t') | averaged, for j < j'. psi are Morlet wavelets: an
oriented Gaussian of width 0.8 * 2^j and slant 4 / angles, times a wave of frequency 3 pi / 4 / 2^j, minus as much of
the Gaussian as makes its sum zero. Bruna and Mallat, "Invariant scattering convolution networks" (2013); the constants
and the order of the paths are those of Kymatio (Andreux et al. 2020), with which the values agree.

An image is continued by reflection, convolved by FFT, and subsampled as its band narrows. phi is separable, so the
averages are two small matrix products. Rows are worked off in parts of `PART_ROWS`, which bounds memory and keeps them
in cache. Every filter is computed from the sizes; none is a weight. Never: draws random numbers, or mixes rows.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

PART_ROWS = 16
_PERIODS = 5  # copies of the grid over which a filter is wrapped around: beyond two and a half it is zero


def padded(side: int, *, scales: int) -> int:
    """The side of the grid on which an image of this side is worked on: whole blocks of 2^J, and at least one more."""
    return (side >> scales) + 2 << scales


class Scattering(nn.Module):
    """[n, channels, height, width] -> [n, channels * paths, height >> scales, width >> scales], paths innermost.

    A side must be above 2^scales. float32 or float64, as the module is.
    """

    def __init__(self, *, height: int, width: int, scales: int, angles: int) -> None:
        super().__init__()
        self.scales = scales
        grid = padded(height, scales=scales), padded(width, scales=scales)
        spare = grid[0] - height, grid[1] - width
        self._margins = (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2)
        for scale in range(scales):
            directions = [(angles - angles // 2 - 1 - index) * math.pi / angles for index in range(angles)]
            bank = torch.stack([morlet(grid, scale=scale, direction=one, slant=4 / angles) for one in directions])
            for level in range(scale + 1):
                self._constant(_psi(scale, level), _band(bank, level))
        for level in range(scales):
            self._constant(f"phi_rows_{level}", _averages(grid[0], scales=scales, level=level))
            self._constant(f"phi_columns_{level}", _averages(grid[1], scales=scales, level=level).T.contiguous())

    def _constant(self, name: str, value: torch.Tensor) -> None:
        self.register_buffer(name, value, persistent=False)  # follows the module's dtype and device; is no weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The scattering coefficients of each image."""
        rows, channels = images.shape[:2]
        planes = images.reshape(rows * channels, *images.shape[2:])
        found = torch.cat([self._part(part) for part in torch.split(planes, PART_ROWS)])  # [n * channels, paths, h, w]
        return found.reshape(rows, channels * found.shape[1], *found.shape[2:])

    def _part(self, planes: torch.Tensor) -> torch.Tensor:  # [m, height, width] -> [m, paths, h, w]
        grid = functional.pad(planes[:, None], self._margins, mode="reflect")  # [m, 1, H, W]
        zeroth, first, second = self._average(grid, 0), [], []
        spectrum = torch.fft.fft2(grid)
        for scale in range(self.scales):
            moduli = self._wavelets(spectrum, scale, level=0)  # [m, angles, H >> scale, W >> scale]
            first.append(self._average(moduli, scale))
            if scale + 1 == self.scales:
                continue
            spectra = torch.fft.fft2(moduli)
            for angle in range(moduli.shape[1]):
                for coarser in range(scale + 1, self.scales):
                    again = self._wavelets(spectra[:, angle : angle + 1], coarser, level=scale)
                    second.append(self._average(again, coarser))
        return torch.cat([zeroth, *first, *second], dim=1)

    def _wavelets(self, spectrum: torch.Tensor, scale: int, *, level: int) -> torch.Tensor:
        """| x * psi | at every angle, subsampled from `level` to `scale`: [m, 1, ...] spectra -> [m, angles, ...]."""
        filtered = _folded(spectrum * self.get_buffer(_psi(scale, level)), 1 << (scale - level))
        waves = torch.fft.ifft2(filtered)
        moduli: torch.Tensor = (waves.real.square() + waves.imag.square()).sqrt_()  # several times faster than abs()
        return moduli

    def _average(self, planes: torch.Tensor, level: int) -> torch.Tensor:
        """x * phi at every 2^J-th pixel, without the border that only padding reached."""
        rows, columns = self.get_buffer(f"phi_rows_{level}"), self.get_buffer(f"phi_columns_{level}")
        averaged: torch.Tensor = rows @ (planes @ columns)
        return averaged


def morlet(grid: tuple[int, int], *, scale: int, direction: float, slant: float) -> torch.Tensor:
    """The Fourier transform (real, float64 [H, W]) of a Morlet wavelet, wrapped around the grid."""
    down, right = (torch.arange(-2 * side, (_PERIODS - 2) * side, dtype=torch.float64) for side in grid)
    along = math.cos(direction) * down[:, None] + math.sin(direction) * right
    across = math.cos(direction) * right - math.sin(direction) * down[:, None]
    width = 0.8 * 2**scale
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2)) * (slant / (2 * math.pi * width**2))
    wave = torch.polar(envelope, along * (3 * math.pi / 4 / 2**scale))
    gabor, gauss = (one.reshape(_PERIODS, grid[0], _PERIODS, grid[1]).sum(dim=(0, 2)) for one in (wave, envelope))
    spectrum: torch.Tensor = torch.fft.fft2(gabor - gabor.sum() / gauss.sum() * gauss)
    return spectrum.real


def _averages(side: int, *, scales: int, level: int) -> torch.Tensor:
    """[side >> scales, side >> level] rows: a Gaussian of width 0.8 * 2^(J-1) about each point that is kept."""
    width = 0.8 * 2 ** (scales - 1)
    place = torch.arange(-2 * side, (_PERIODS - 2) * side, dtype=torch.float64)
    gauss = torch.exp(-(place**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)
    spectrum: torch.Tensor = torch.fft.fft(gauss.reshape(_PERIODS, side).sum(dim=0))
    kernel: torch.Tensor = torch.fft.ifft(_halved(spectrum.real, -1, level)).real
    fine, step = side >> level, 1 << (scales - level)
    kept = torch.arange(step, fine - step, step)
    return kernel[(kept[:, None] - torch.arange(fine)) % fine]


def _psi(scale: int, level: int) -> str:
    return f"psi_{scale}_at_{level}"


def _halved(spectrum: torch.Tensor, dim: int, level: int) -> torch.Tensor:
    """The lowest frequencies of one dimension: what a grid 2^level times coarser can hold."""
    if level == 0:
        return spectrum
    half = spectrum.shape[dim] >> (level + 1)
    return torch.cat((spectrum.narrow(dim, 0, half), spectrum.narrow(dim, spectrum.shape[dim] - half, half)), dim)


def _band(spectra: torch.Tensor, level: int) -> torch.Tensor:
    return _halved(_halved(spectra, -2, level), -1, level)


def _folded(spectra: torch.Tensor, factor: int) -> torch.Tensor:
    """Spectra of every `factor`-th pixel in both directions: frequencies that become the same one are averaged."""
    if factor == 1:
        return spectra
    *lead, height, width = spectra.shape
    tiles = spectra.reshape(*lead, factor, height // factor, factor, width // factor)
    total = torch.zeros_like(tiles[..., 0, :, 0, :])
    for down in range(factor):
        for right in range(factor):
            total = total + tiles[..., down, :, right, :]
    return total / factor**2
