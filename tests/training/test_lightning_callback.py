"""The callback under Lightning: trains in few bits, resumes, leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as lightning

from training_nets import conv_net, image_batches, same_weights


def fit(steps: int, checkpoint: Path | None = None, save: Path | None = None) -> tuple[Any, Any]:
    from geoquant.training.lightning_callback import AdaptivePrecisionCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    callback, module = AdaptivePrecisionCallback("gradient"), Module()
    trainer = lightning.Trainer(
        max_epochs=steps, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(image_batches(3), batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return module, callback.precision


def test_it_trains_resumes_and_gives_the_model_back(tmp_path: Path):
    whole, run = fit(4)
    assert run.step == 12
    assert run.operations.average_bits < 32
    assert not any("forward" in module.__dict__ for module in whole.net.modules())
    fit(2, save=tmp_path / "half.ckpt")
    again, resumed = fit(4, checkpoint=tmp_path / "half.ckpt")
    assert resumed.operations == run.operations
    assert same_weights(whole, again)
