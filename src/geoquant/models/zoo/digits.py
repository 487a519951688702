"""A small convolutional network for scikit-learn's 8×8 digits: it trains in seconds on a laptop."""

from __future__ import annotations

from torch import Tensor, nn

from geoquant.models.zoo.catalogue import ZOO


class DigitsCNN(nn.Module):
    """Three 3×3 convolutions with batch norm, and two linear layers, for images (N, 1, 8, 8)."""

    def __init__(self, width: int = 16, hidden: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width), *_convolution(width, 2 * width, 2), *_convolution(2 * width, 2 * width, 2)
        )
        self.hidden = nn.Linear(2 * width * 2 * 2, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 8, 8) to logits (N, classes)."""
        x = self.features(x).flatten(1)
        return self.head(self.hidden(x).relu())  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


@ZOO.add("digits_cnn")
def digits_cnn() -> DigitsCNN:
    """Build the network of the demo.

    >>> sum(p.numel() for p in digits_cnn().parameters())
    18586
    """
    return DigitsCNN()
