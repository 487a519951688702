"""Which networks does the zoo hold? A name each, and a function that builds it with fresh weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from geoquant.registry import Registry

Builder = Callable[..., nn.Module]

ZOO: Registry[Builder] = Registry("zoo network")
