"""Whole runs: interrupted ones end in the same bits; the descent condition is held against what steps do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.errors import DataError, FileFormatError
from geoquant.rates import one_cycle
from geoquant.training import adaptive, make_schedule
from geoquant.training.checkpoint import load_checkpoint_, save_checkpoint
from geoquant.training.practice import Practice
from geoquant.training.run import CHECKPOINT, Settings, _order, train_
from geoquant.training.schedules import NumGeom
from training_nets import conv_net, image_batches, optimizer_of, same_weights, train

SETTINGS = Settings("numgeom", epochs=3, batch_size=12, check_every=2)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    batches = image_batches(3)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


class StopHere(BaseException):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupted_run_ends_in_the_same_bits(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings("numgeom", 3, 12, optimizer=optimizer, check_every=2)
    schedule = NumGeom(every=2)
    whole = conv_net()
    run = train_(whole, *images(), settings, schedule)
    cut = conv_net()  # a checkpoint after every three steps

    def interrupted(step: int, total: int) -> float:
        if step == 7:
            raise StopHere
        return one_cycle(step, total)

    monkeypatch.setattr("geoquant.training.run.one_cycle", interrupted)
    with pytest.raises(StopHere):
        train_(cut, *images(), settings, schedule, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / CHECKPOINT).exists()
    again = conv_net(seed=5)
    resumed = train_(again, *images(), settings, schedule, tmp_path)
    assert same_weights(whole, again)
    assert not same_weights(whole, cut)
    assert resumed.losses == run.losses
    assert resumed.precision.operations == run.precision.operations
    assert resumed.precision.log == run.precision.log
    assert resumed.practice == run.practice


def test_an_order_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    randperm = torch.randperm

    def counting(count: int, **options: torch.Generator) -> torch.Tensor:
        drawn.append(count)
        return randperm(count, **options)

    _order.cache_clear()
    monkeypatch.setattr(torch, "randperm", counting)
    train_(conv_net(), *images(), Settings("float32", 3, 12))
    assert drawn == [36, 36, 36]
    epochs = [_order(36, 0, epoch).tolist() for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(sorted(each) == list(range(36)) for each in epochs)


def test_checkpoints_of_others_are_refused_and_change_nothing(tmp_path: Path):
    model = conv_net()
    train_(model, *images(), SETTINGS, folder=tmp_path)
    fresh = conv_net(seed=3)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(DataError, match="other settings"):
        train_(fresh, *images(), Settings("numgeom", epochs=4, batch_size=12), folder=tmp_path)
    other = nn.Linear(2, 2)
    optimizer = optimizer_of(other)
    with pytest.raises(ValueError, match="layers"):
        load_checkpoint_(tmp_path / CHECKPOINT, other, optimizer, adaptive(other, optimizer))
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:-50])
    with pytest.raises(FileFormatError, match="checkpoint"):
        train_(fresh, *images(), SETTINGS, folder=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


def test_a_checkpoint_holds_any_optimizer_and_the_generator(tmp_path: Path):
    model = conv_net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, amsgrad=True)
    with adaptive(model, optimizer, "uniform:int4") as run:
        train(model, optimizer, image_batches(2))
        save_checkpoint(tmp_path / "c.safetensors", model, optimizer, run, {"epoch": 1})
    drawn = torch.rand(3)
    other = conv_net(seed=4)
    second = torch.optim.AdamW(other.parameters(), 1e-3, amsgrad=True)
    fresh = adaptive(other, second, "uniform:int4")
    assert load_checkpoint_(tmp_path / "c.safetensors", other, second, fresh) == {"epoch": 1}
    assert torch.equal(torch.rand(3), drawn)
    assert same_weights(model, other)
    for one, two in zip(optimizer.state.values(), second.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_too_little_data_says_so():
    with pytest.raises(DataError, match="no batch"):
        train_(conv_net(), *images(), Settings(batch_size=1000))


def quadratic(theta: float, rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, theta)
    return model, torch.optim.SGD(model.parameters(), rate)


@pytest.mark.parametrize(
    ("rate", "spoiled", "place"),
    [
        (0.5, 0.0, (1, 0, 0, 0)),
        (0.5, -3.0, (0, 0, 0, 1)),
        (0.5, 1.5, (0, 0, 1, 0)),
        (2.5, 0.0, (0, 1, 0, 0)),
    ],
)
def test_practice_files_each_step_under_what_was_promised_and_what_it_did(
    rate: float, spoiled: float, place: tuple[int, ...]
):
    """½w² with an error of `spoiled` times the gradient; the last case breaks η ≤ 1/L, and rises although promised."""
    model, optimizer = quadratic(1.0, rate)
    practice, x = Practice(), torch.ones(1, 1)

    def loss() -> torch.Tensor:
        return 0.5 * model(x).square().sum()

    with adaptive(model, optimizer, "float32") as run:
        loss().backward()
        model.weight.grad *= 1 + spoiled
        with practice.step(run, loss):
            optimizer.step()
    assert (*practice.promised, *practice.unpromised) == place
    assert practice.ratios == pytest.approx([abs(spoiled)])


def test_practice_leaves_running_statistics_alone():
    model = conv_net()
    optimizer = optimizer_of(model)
    practice, (x, y) = Practice(), image_batches(1)[0]
    with adaptive(model, optimizer, "uniform:int4") as run:
        F.cross_entropy(model(x), y).backward()
        before = model.norm.running_mean.clone()
        with practice.step(run, lambda: F.cross_entropy(model(x), y)):
            optimizer.step()
        assert torch.equal(before, model.norm.running_mean)
        assert sum(practice.promised) + sum(practice.unpromised) == 1


@pytest.mark.parametrize("scale", [1e4, 1e12, 1e25, 1e38])
@pytest.mark.parametrize("name", ["numgeom", "sound", "seed18", "combined", "curvature", "gradient", "uniform:int4"])
def test_a_run_that_blows_up_goes_on_to_its_end(name: str, scale: float):
    """Weights that grow past float32 make curvature, noise and losses no numbers; nothing may stop for that."""
    model, batches = conv_net(), image_batches(6)
    optimizer, practice = optimizer_of(model), Practice()
    pace = {} if name.startswith("uniform") else {"curvature_every": 1} if name == "seed18" else {"every": 2}
    with adaptive(
        model, optimizer, make_schedule(name, **pace), steps_per_epoch=2, total_steps=6, probe=lambda: loss()
    ) as run:
        for place, (x, y) in enumerate(batches):

            def loss(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                return F.cross_entropy(model(x), y)

            if place == 3:
                with torch.no_grad():
                    for weight in (model.stem.weight, model.head.weight):
                        weight.mul_(scale)
            optimizer.zero_grad()
            loss().backward()
            with practice.step(run, loss):
                optimizer.step()
    assert run.step == 6
    assert sum(practice.promised) + sum(practice.unpromised) == 6
    assert all(math.isfinite(ratio) for ratio in practice.ratios)
    assert len(run.log.anomalies) > 0 or scale < 1e38
    json.dumps(run.log.state_dict(), allow_nan=False)
