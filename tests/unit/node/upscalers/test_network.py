"""Proves on which inputs the network of ``mammo`` depends, and what its files hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from node.upscalers.mammo import load_network, save_network
from node.upscalers.network import SEEN, MammoNetwork, NetworkConfig, to_latent, to_pixels
from tests.support.samples import breast


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are too small for several threads, which are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def awake(width: int = 8, blocks: tuple[int, int, int] = (1, 1, 1), seed: int = 1) -> MammoNetwork:
    """A network whose every layer has an effect. In a new network, the last layers are zero."""
    torch.manual_seed(seed)
    network = MammoNetwork(NetworkConfig(width=width, wide=2 * width, blocks=blocks))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 / max(parameter[0].numel(), 1) ** 0.5)
    return network.eval().requires_grad_(False)


def inputs(rows: int = 24, columns: int = 32, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inputs x, seen and point for one image of ``rows`` x ``columns`` latent cells."""
    random = torch.Generator().manual_seed(seed)
    x, seen = (torch.randn(1, channels, rows, columns, generator=random) for channels in (16, SEEN))
    return x, seen, torch.tensor([[0.0, 1.0, -0.3]])


def test_at_the_start_no_draw_is_heard() -> None:
    network = awake()
    x, seen, point = inputs()
    one, other = (network(drawn, seen, torch.zeros(1), point) for drawn in (x, x * -37))
    assert torch.equal(one, other)
    assert float(one.std()) > 0
    later = torch.tensor([0.5])
    assert not torch.equal(network(x, seen, later, point), network(-x, seen, later, point))


def test_an_untrained_network_has_no_velocity() -> None:
    x, seen, point = inputs()
    assert not MammoNetwork(NetworkConfig(width=8, wide=16))(x, seen, torch.tensor([0.5]), point).any()


def test_a_trunk_of_half_precision_ends_in_full() -> None:
    network, x = awake(), inputs()
    whole = network(x[0], x[1], torch.tensor([0.5]), x[2])
    half = network.with_trunk(torch.bfloat16)(x[0], x[1], torch.tensor([0.5]), x[2])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.05 * float(whole.std()), rtol=0.05)


def test_the_latent_is_the_image_itself() -> None:
    pixels = torch.from_numpy(breast(264, 280).astype(np.float32))[None, None]
    latent = to_latent(pixels)
    assert latent.shape == (1, 16, 66, 70)
    assert torch.equal(to_pixels(latent), pixels)
    assert torch.equal(latent[0, :, 3, 5], pixels[0, 0, 12:16, 20:24].flatten())


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 2, 1), (2, 0, 0)], ids=str)
def test_a_pixel_depends_on_its_surroundings_as_far_as_the_halo_and_no_further(blocks: tuple[int, int, int]) -> None:
    network = awake(blocks=blocks)
    cells = network.halo // 4
    size = 2 * (cells + 8)
    x, seen, point = inputs(size, size)
    t = torch.tensor([0.5])
    before = network(x, seen, t, point)
    reach = 0
    for row, column in ((cells + 8, cells + 8), (cells + 9, cells + 9)):  # both phases of the coarse grid
        moved, other = x.clone(), seen.clone()
        moved[..., row, column] += 5
        other[..., row, column] -= 5
        changed = (network(moved, other, t, point) != before).any(dim=1)[0].nonzero()
        assert len(changed)
        reach = max(reach, int((changed - torch.tensor([row, column])).abs().max()))
    assert reach * 4 <= network.halo
    assert reach * 4 > network.halo - 16  # nor is more cut out than is needed


def test_a_model_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    network = awake(blocks=(1, 2, 1))
    save_network(network, tmp_path)
    x, seen, point = inputs()
    expected = network(x, seen, torch.tensor([0.4]), point)
    loaded = load_network(tmp_path)
    assert torch.equal(loaded(x, seen, torch.tensor([0.4]), point), expected)
    assert (loaded.config, loaded.halo, loaded.training) == (network.config, network.halo, False)
