"""Views only reorder entries: to the matrix and back is exact, and channels are the layer's real outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoquant.errors import ModelError
from geoquant.models import views


@st.composite
def viewed_shapes(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    view = draw(st.sampled_from(["rows", "columns", "stacked", "transposed"]))
    shape = draw(st.lists(st.integers(1, 4), min_size=3, max_size=5))
    if view == "transposed":
        groups = draw(st.integers(1, 3))
        return views.transposed(groups), (groups * shape[0], *shape[1:])
    return view, tuple(shape)


@given(viewed_shapes())
def test_matrix_and_back_is_exact(case: tuple[str, tuple[int, ...]]) -> None:
    view, shape = case
    weight = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    matrix = views.to_matrix(view, weight)
    assert tuple(matrix.shape) == views.matrix_shape(view, shape)
    assert torch.equal(views.from_matrix(view, matrix, shape), weight)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_channel_of_transposed_convolution_is_its_output(kind: type[nn.Module], groups: int) -> None:
    """Zeroing row c of the matrix must silence output channel c and no other."""
    torch.manual_seed(0)
    layer = kind(6, 9 if groups == 3 else 4, 2, groups=groups, bias=False)
    axes = int(kind.__name__[-2])
    x = torch.randn(2, 6, *[3] * axes)
    view = views.transposed(groups)
    before = layer(x)
    for channel in range(layer.out_channels):
        matrix = views.to_matrix(view, layer.weight.detach()).clone()
        matrix[channel] = 0
        changed = nn.Module.__new__(type(layer))
        changed.__dict__ = layer.__dict__.copy()
        weight = nn.Parameter(views.from_matrix(view, matrix, tuple(layer.weight.shape)))
        changed._parameters = {**layer._parameters, "weight": weight}
        after = changed(x)
        silenced = (after.abs().amax([0, *range(2, 2 + axes)]) == 0).nonzero().flatten().tolist()
        assert silenced == [channel]
        others = [c for c in range(layer.out_channels) if c != channel]
        torch.testing.assert_close(after[:, others], before[:, others])


def test_memory_layout_does_not_matter() -> None:
    weight = torch.randn(4, 3, 2, 2)
    for view in ("rows", "columns", "transposed:2"):
        expected = views.to_matrix(view, weight)
        assert torch.equal(views.to_matrix(view, weight.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    ("view", "shape"),
    [("row", (2, 2)), ("transposed:0", (2, 2)), ("transposed:2", (3, 2)), ("columns", (3,)), ("stacked", (3, 3))],
)
def test_impossible_views_are_refused(view: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=view.split(":", maxsplit=1)[0]):
        views.matrix_shape(view, shape)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(4, 3\).*\(3, 4\)"):
        views.from_matrix("rows", torch.zeros(4, 3), (3, 4))
