"""The gate's figures in the plainest possible way, to hold the fast ones to: loops, float64, whole images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from node.fidelity.reference import Reference
from node.fidelity.specks import SIGMAS

Values = NDArray[np.float64]
TILE, BLOCK = 256, 16
QUANTISATION = 1 / math.sqrt(12)


def blurred(image: Values, sigma: float) -> Values:
    """A Gaussian out to 24 pixels, the border repeated."""
    weights = np.exp(-((np.arange(-24, 25) / sigma) ** 2) / 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(24, 24) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        size = image.shape[axis]
        image = sum(  # type: ignore[assignment]
            weight * np.take(padded, range(shift, shift + size), axis=axis) for shift, weight in enumerate(weights)
        )
    return image


def noise(values: Values, blocks: NDArray[np.bool_], floor: float) -> Values:
    """Per block of one tile: the lower median of the own medians of it and its neighbours with breast."""
    found = np.full((16, 16), np.inf)
    own = {
        (i, j): float(np.median(np.abs(values[16 * i : 16 * i + 16, 16 * j : 16 * j + 16])))
        for i in range(16)
        for j in range(16)
    }
    for i, j in own:
        if blocks[i, j]:
            near = [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2)]
            medians = sorted(own[place] for place in near if place in own and blocks[place])
            found[i, j] = max(medians[(len(medians) - 1) // 2] * 1.4826, floor)
    return found


def grain(reference: Reference, tile: tuple[int, int], step: float) -> Values:
    """Local noise of a tile in grey levels, per pixel; infinite where it is that of rounding."""
    image = reference.pixels.astype(np.float64)
    rough = inner(image - blurred(image, SIGMAS[2]), tile)
    found = noise(rough, reference.blocks(tile), step * QUANTISATION)
    found[found <= 1.5 * step * QUANTISATION] = np.inf
    return np.kron(found, np.ones((16, 16)))


def strengths(reference: Reference, tile: tuple[int, int], step: float) -> tuple[list[Values], list[Values]]:
    """Each filter's response in grey levels, and over its noise, of a tile of the original."""
    image = reference.pixels.astype(np.float64)
    responses, over = [], []
    point = np.zeros((129, 129))
    point[64, 64] = 1
    for small, large in zip(SIGMAS, SIGMAS[2:], strict=False):
        response = inner(blurred(image, small) - blurred(image, large), tile)
        passed = math.sqrt(float(np.square(blurred(point, small) - blurred(point, large)).sum()))
        floor = step * QUANTISATION * passed
        responses.append(response)
        over.append(response / np.kron(noise(response, reference.blocks(tile), floor), np.ones((16, 16))))
    return responses, over


def inner(values: Values, tile: tuple[int, int]) -> Values:
    row, column = tile
    return values[row : row + TILE, column : column + TILE]
