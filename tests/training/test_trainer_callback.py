"""The callback under transformers' Trainer: trains in few bits, resumes to the bit, leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from training_nets import conv_net, image_batches, same_weights


class Wrapped(nn.Module):
    """A net as the Trainer wants it: keyword arguments in, a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fit(folder: Path, steps: int, resume: bool = False) -> tuple[nn.Module, Any]:
    from geoquant.training.trainer_callback import AdaptivePrecisionCallback

    rows = [{"x": x, "labels": y} for xs, ys in image_batches(4) for x, y in zip(xs, ys, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, save_steps=3, report_to=[], use_cpu=True,
        disable_tqdm=True, lr_scheduler_type="constant", seed=1,
    )  # fmt: skip
    callback = AdaptivePrecisionCallback("combined", probe=None)
    model = Wrapped()
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return model, callback.precision


def test_it_trains_resumes_and_gives_the_model_back(tmp_path: Path):
    whole, run = fit(tmp_path / "whole", 6)
    assert run.step == 6
    assert run.operations.average_bits < 32
    assert not any("forward" in module.__dict__ for module in whole.net.modules())
    fit(tmp_path / "cut", 3)
    again, resumed = fit(tmp_path / "cut", 6, resume=True)
    assert resumed.step == 6
    assert resumed.operations == run.operations
    assert same_weights(whole, again)
