"""A plain float training loop for small image classifiers: what demos and benchmarks start from.

AdamW with a one-cycle learning rate, shuffled minibatches, one generator for everything random. It makes
honest float models in seconds; it is not a framework.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.progress import task


def fit_classifier_(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> float:
    """Train `model` in place with cross-entropy; return the mean loss of the last epoch in nats.

    Args:
        model: maps (n, ...) inputs to (n, classes) logits; left in eval mode.
        inputs: (N, ...) float tensor.
        labels: (N,) integer classes.
        epochs: passes over the data.
        seed: order of the minibatches and every draw of `augment`.
        batch_size: samples per step; an incomplete last batch is dropped.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW, decoupled.
        augment: ``augment(batch, generator) -> batch``, applied to every minibatch.

    >>> x = torch.cat([torch.randn(64, 2) - 3, torch.randn(64, 2) + 3])
    >>> y = torch.arange(128) // 64
    >>> net = nn.Linear(2, 2)
    >>> fit_classifier_(net, x, y, epochs=20, seed=0, batch_size=32, learning_rate=0.1) < 0.1
    True
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(inputs))
    steps = len(inputs) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps * epochs)
    total = 0.0
    model.train()
    with task("training", epochs * steps) as advance:
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(inputs), generator=generator)[: steps * batch_size].view(steps, -1):
                batch = inputs[rows]
                loss = F.cross_entropy(model(augment(batch, generator) if augment else batch), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                advance()
    model.eval()
    return total / steps
