"""Lightning, transformers' Trainer and a loop of one's own end with ordinary quantized models that recovered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning import pytorch as lightning
from torch import Tensor, nn

import geoquant as gq
from geoquant.recovery import Objective, Settings, prepare_, recover_, training_mode_
from geoquant.recovery.callbacks import lightning_callback, trainer_callback
from geoquant.recovery.feeding import Shuffled


def start(net: nn.Module, batches: list[Any]) -> tuple[nn.Module, gq.Plan]:
    plan = gq.uniform_plan(net, "int2")
    return gq.quantize_(copy.deepcopy(net), plan, batches, effort="fast", norms="none"), plan


def check(net: nn.Module, model: nn.Module, plan: gq.Plan, batches: list[Any], folder: Path) -> None:
    """The model is ordinary, saved to the byte, and nearer to the float model than it was."""
    before, _ = start(net, batches)
    assert gq.divergence(net, model, batches).value < 0.9 * gq.divergence(net, before, batches).value
    path = gq.save(model, plan, folder)
    assert path.stat().st_size == plan.bytes
    inputs = batches[0][0]
    assert torch.equal(gq.load(folder, net)(inputs), model(inputs))


def test_a_loop_of_ones_own_does_what_recover_does(net, batches, tmp_path) -> None:
    model, plan = start(net, batches)
    other = copy.deepcopy(model)
    settings = Settings(epochs=3, norms="frozen", schedule="constant", warmup=0)
    latents = prepare_(model, reference=net)
    latents.watch_()
    training_mode_(model, settings)
    objective, optimizer = Objective(teacher=net), torch.optim.AdamW(latents.groups(settings))
    source = Shuffled(batches, settings.seed)
    for step in range(24):
        latents.begin_step_(step / 24, settings)
        optimizer.zero_grad()
        objective(model, source.batch(*divmod(step, 8))).backward()
        optimizer.step()
    latents.finish_()
    model.eval()
    check(net, model, plan, batches, tmp_path)
    recover_(other, plan, batches, teacher=net, epochs=3, norms="frozen", schedule="constant", warmup=0)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in other.state_dict().items())


def test_lightning_trains_it(net, batches, tmp_path) -> None:
    model, plan = start(net, batches)
    latents = prepare_(model, reference=net)
    settings = Settings(rate=2e-3, freeze=0.05)

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return Objective(teacher=net)(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(latents.groups(settings))

    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[lightning_callback(latents, settings)],
    )
    trainer.fit(Task(), torch.utils.data.DataLoader(batches, batch_size=None))
    seen = latents.weights["block.weight"].oscillation
    assert seen is not None
    assert float(seen._seen) == 4 * len(batches)
    check(net, model, plan, batches, tmp_path)


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, batches: list[Any]) -> None:
        self.inputs, self.labels = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.inputs[index], "labels": self.labels[index]}


class Distilling(nn.Module):
    """What the Trainer wants of a model: a loss beside the logits."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, Objective(teacher=teacher)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.objective(self.model, x), "logits": self.model(x)}


def test_the_trainer_of_transformers_trains_it(net, batches, tmp_path) -> None:
    model, plan = start(net, batches)
    latents = prepare_(model, reference=net)
    settings = Settings(rate=2e-3)
    wrapped = Distilling(model, net)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=4,
        per_device_train_batch_size=32,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    transformers.Trainer(
        wrapped,
        arguments,
        train_dataset=Images(batches),
        optimizers=(torch.optim.AdamW(latents.groups(settings)), None),
        callbacks=[trainer_callback(latents, settings)],
    ).train()
    seen = latents.weights["block.weight"].oscillation
    assert seen is not None
    assert float(seen._seen) == 4 * len(batches)
    check(net, model, plan, batches, tmp_path / "out")
