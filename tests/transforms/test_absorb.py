"""Scales and shifts of norms move into the layers behind them exactly, and only where nobody else reads the norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoquant.transforms import TransformReport, transform_
from transforms.models import case, llama

ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def absorbed(model: nn.Module, batch: object = ROWS) -> TransformReport:
    (report,) = transform_(model, "absorb", [batch])
    return report


def normed(bias: bool = True) -> nn.Sequential:
    """LayerNorm and a linear layer with lively numbers; one scale is negative and one is zero."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3, bias=bias))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, -0.5, 0.0, 8.0]))
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    return model


def test_scale_and_shift_go_where_the_algebra_says() -> None:
    model = normed()
    weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    wanted = model(ROWS)
    report = absorbed(model)
    assert [str(each) for each in report.applied] == ["0 → 1"]
    assert torch.equal(model[0].weight, torch.ones(4))
    assert torch.equal(model[0].bias, torch.zeros(4))
    torch.testing.assert_close(model[1].weight, weight * torch.tensor([2.0, -0.5, 0.0, 8.0]))
    torch.testing.assert_close(model[1].bias, bias + weight @ torch.tensor([1.0, 2.0, 3.0, 0.0]))
    torch.testing.assert_close(model(ROWS), wanted, atol=1e-6, rtol=1e-5)


def test_without_a_bias_the_shift_stays_in_the_norm() -> None:
    model = normed(bias=False)
    wanted = model(ROWS)
    (applied,) = absorbed(model).applied
    assert applied.note == "its shift stays: '1' has no bias"
    assert model[0].weight.tolist() == [1.0, 1.0, 0.0, 1.0], "a channel of scale 0 gives its shift alone"
    assert model[0].bias.tolist() == [0.5, -4.0, 3.0, 0.0]
    torch.testing.assert_close(model(ROWS), wanted, atol=1e-6, rtol=1e-5)


def test_a_second_time_finds_nothing() -> None:
    model = normed()
    absorbed(model)
    assert [str(each) for each in absorbed(model).skipped] == ["0: its scale is 1 already"]


class TwoReaders(nn.Module):
    """A norm that a linear layer reads, and in one of several ways somebody else."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.norm, self.layer, self.way = nn.LayerNorm(4), nn.Linear(4, 4), way
        self.norm.weight.data.fill_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.way == "residual":
            return self.layer(y) + y
        if self.way == "view":
            return self.layer(y) * y.view(-1)[:1]
        if self.way == "written":
            seen = y.view(-1)
            out = self.layer(y)
            seen.mul_(2.0)
            return out + self.layer.weight.sum()
        if self.way == "returned":
            return torch.cat([self.layer(y), y])
        if self.way == "twice":
            return self.layer(self.norm(y))
        if self.way == "weight":
            return self.layer(y) + nn.functional.linear(y, self.layer.weight)
        return self.layer(y)


def test_a_second_reader_keeps_the_norm_as_it_is() -> None:
    reasons = {
        "residual": "'add' reads it",
        "view": "reads it",
        "written": "written in place under another name",
        "returned": "'cat' reads it",
        "twice": "it is called 2 times",
        "weight": "reads it",
    }
    for way, reason in reasons.items():
        (skipped,) = absorbed(TwoReaders(way)).skipped
        assert reason in skipped.reason, (way, skipped)
    assert absorbed(TwoReaders("alone")).applied, "the twin: with one reader it goes"


def test_a_reader_whose_weight_is_used_outside_cannot_be_rewritten() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)
            self.norm.weight.data.fill_(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.norm(x)) + x @ self.layer.weight

    (skipped,) = absorbed(Outside()).skipped
    assert skipped.reason == "'layer' reads it, and its weight is read outside of it"


def test_tied_heads_and_gemmas_offset() -> None:
    model, batch = case("llama", torch.float32)
    torch.manual_seed(0)
    tied = llama(tied=True).eval()
    tied.model.norm.weight.data.uniform_(0.5, 2.0)
    report = absorbed(tied, batch)
    assert {each.source: each.reason for each in report.skipped}["model.norm"].endswith("its weight is tied to another")
    gemma, batch = case("gemma", torch.float32)
    assert len(absorbed(gemma, batch).applied) == 5
    assert not gemma.model.norm.weight.any(), "a norm that multiplies by 1 + weight ends at 0"
    assert len(absorbed(model, batch).applied) == 5
    assert bool((model.model.norm.weight == 1).all())
