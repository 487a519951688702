"""A layer's output is its matrix times its patches, for every layer that has patches."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from geoquant.models import Arrival, find_sites, get_weight, has_patches, patches
from geoquant.models.moments import ENOUGH, second_moment, thinning
from geoquant.models.patches import CHUNK

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear on tokens": (nn.Linear(6, 4), (2, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 1)), (2, 3, 7, 6)),
    "conv3d": (nn.Conv3d(2, 4, 2, dilation=2, padding=1), (2, 2, 5, 5, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2, dilation=2, padding=2), (2, 6, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5)),
    "same": (nn.Conv1d(2, 3, 4, padding="same", dilation=3), (2, 2, 13)),
    "valid": (nn.Conv1d(2, 3, 4, padding="valid"), (2, 2, 13)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 5, 6)),
    "circular": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 7)),
    "no batch axis": (nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "transposed1d": (nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), dilation=(2, 1), groups=2), (2, 4, 4, 3)),
    "transposed, cropped": (nn.ConvTranspose2d(2, 3, 2, stride=2, padding=2), (2, 2, 4, 4)),
    "transposed3d": (nn.ConvTranspose3d(2, 2, 2, stride=2, groups=2), (1, 2, 2, 3, 2)),
}


def product(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the output before the bias as (channels, positions), from matrix and patches."""
    site = find_sites(nn.ModuleDict({"layer": layer}))[0]
    matrix = site.matrix(get_weight(nn.ModuleDict({"layer": layer}), site))
    blocks = torch.cat(list(patches(layer, inputs)), 2)
    grouped = matrix.reshape(len(blocks), -1, matrix.shape[1])
    return (grouped @ blocks).reshape(len(matrix), -1)


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_times_patches_is_the_output(name: str) -> None:
    layer, shape = LAYERS[name]
    inputs = torch.randn(shape)
    with torch.no_grad():
        output = layer(inputs)
        bias = layer.bias
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else (0 if name == "no batch axis" else 1)
        expected = output.movedim(axis, 0).flatten(1) - bias[:, None]
        torch.testing.assert_close(product(layer, inputs), expected, atol=1e-5, rtol=1e-5)


def test_blocks_are_bounded_and_together_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = nn.Conv2d(3, 4, 3, stride=2), torch.randn(10, 3, 9, 9)
    whole = next(patches(layer, inputs))
    monkeypatch.setattr(sys.modules[patches.__module__], "CHUNK", 3 * 9 * 16 * 4)
    parts = list(patches(layer, inputs))
    assert len(parts) > 1
    assert all(part.numel() <= 2 * 3 * 9 * 16 * 4 for part in parts)
    assert torch.equal(torch.cat(parts, 2), whole)
    assert CHUNK > 10**6


def test_layers_that_multiply_nothing_have_none() -> None:
    assert not any(has_patches(layer) for layer in (nn.Embedding(3, 3), nn.ReLU(), nn.MultiheadAttention(4, 2)))


def test_thinned_positions_cover_every_row_and_column_alike() -> None:
    layer = nn.Conv2d(1, 1, 1)
    image = torch.arange(81.0).reshape(1, 1, 9, 9)
    seen = torch.cat([block.flatten() for block in patches(layer, image.repeat(6, 1, 1, 1), every=3)]).long()
    assert len(seen) == 6 * 9
    assert torch.bincount(seen // 9).tolist() == torch.bincount(seen % 9).tolist() == [6] * 9
    assert next(patches(layer, image[..., :1, :1], every=3)).shape == (1, 1, 1)  # one position cannot be thinned away


@pytest.mark.parametrize(("samples", "most"), [(2, 2 * 1024), (512, 512 * 1024 // 50)])
def test_moments_thin_out_only_what_abounds(samples: int, most: int) -> None:
    layer, inputs = nn.Conv2d(4, 4, 3, padding=1), torch.randn(samples, 4, 32, 32)
    ones = sum(block.shape[2] for block in patches(layer, inputs, thinning(layer, [Arrival((inputs,), {})])))
    assert min(samples * 1024, ENOUGH * 36) <= ones <= most
    found = second_moment(layer, [Arrival((inputs,), {})])
    assert found is not None
    blocks = torch.cat(list(patches(layer, inputs)), 2)
    whole = blocks @ blocks.mT / blocks.shape[2]
    torch.testing.assert_close(found.float(), whole, atol=0.06, rtol=0)
