"""Does bad data stop before any work, with a sentence that finds it, and does a fingerprint tell data apart?"""

from __future__ import annotations

from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from geoquant.data import Batches, collect, fingerprint, samples
from geoquant.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)),
        [torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)],
        ((torch.zeros(2, 3), torch.ones(2)), torch.zeros(2)),
        ({"x": torch.zeros(2, 3), "flag": True}, torch.zeros(2)),
        {"input_ids": torch.zeros(2, 5, dtype=torch.long), "use_cache": False},
        UserDict(input_ids=torch.zeros(2, 5, dtype=torch.long)),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_every_stated_form_passes_unchanged(batch):
    assert collect([batch])[0] is batch
    assert samples(batch) == 2


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "no batches"),
        (iter(()), "no batches"),
        (torch.zeros(4, 2), r"one torch.Tensor instead of several batches; put it in a list"),
        ({"x": torch.zeros(4, 2)}, "one dict instead of several"),
        ("cifar10", "got str instead of batches"),
        (None, "got NoneType instead of batches"),
        (TensorDataset(torch.zeros(2, 3)), "instead of batches; expected a list, a DataLoader"),
        ([np.zeros((2, 3))], "batch 0 is numpy.ndarray; expected a tensor, an"),
        ([torch.zeros(1), "x"], "batch 1 is str"),
        ([(torch.zeros(1),)], "batch 0 is a tuple of 1; .*several inputs go together"),
        ([(torch.zeros(1), torch.zeros(1), torch.zeros(1))], "batch 0 is a tuple of 3"),
        ([(torch.zeros(1), 3)], "targets are int; expected a tensor"),
        ([(3, torch.zeros(1))], "inputs are int; expected a tensor, a tuple or a mapping"),
        ([{0: torch.zeros(1)}], "mapping with the key 0; expected names"),
        ([({0: torch.zeros(1)}, torch.zeros(1))], "mapping with the key 0; expected names"),
        ([{"text": "abc"}], "batch 0 .* holds no tensor with a batch axis"),
        ([{}], "batch 0 .* holds no tensor"),
        ([torch.tensor(1.0)], "batch 0 .* holds no tensor with a batch axis"),
        ([torch.zeros(1), torch.zeros(0, 3)], "batch 1 holds no samples"),
        (
            [torch.zeros(1), torch.tensor([NAN, NAN, INF, 0])],
            "batch 1 holds 2 NaN and 1 Inf of 4 numbers in its inputs",
        ),
        ([(torch.zeros(1), torch.tensor([-INF]))], "batch 0 holds 0 NaN and 1 Inf of 1 numbers in its targets"),
        ([{"a": torch.zeros(1), "b": torch.tensor([NAN])}], "in its 'b'"),
        ([({"b": torch.tensor([NAN])}, torch.zeros(1))], "in its inputs 'b'"),
        ([((torch.zeros(1), torch.tensor([NAN])), torch.zeros(1))], r"in its inputs \[1\]"),
        ([torch.tensor([NAN], dtype=torch.float16)], "1 NaN"),
    ],
)
def test_what_is_not_fit_is_named(batches, sentence):
    with pytest.raises(DataError, match=sentence):
        collect(batches)


def test_a_loader_of_pairs_is_walked_once():
    loader = DataLoader(TensorDataset(torch.arange(10.0), torch.arange(10)), batch_size=4)
    assert [len(targets) for _, targets in collect(loader)] == [4, 4, 2]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), limit=st.integers(1, 40))
def test_the_limit_keeps_the_first_samples(sizes, limit):
    ids = torch.arange(sum(sizes)).float()
    given_batches = [{"x": part, "pair": (part, 1), "scale": torch.tensor(2.0)} for part in ids.split(sizes)]
    kept = collect(given_batches, limit)
    assert torch.equal(torch.cat([batch["x"] for batch in kept]), ids[:limit])
    assert torch.equal(torch.cat([batch["pair"][0] for batch in kept]), ids[:limit])
    assert all(batch["scale"] == 2 for batch in kept)


def test_the_limit_stops_an_endless_source():
    def forever():
        while True:
            yield torch.zeros(3)

    assert [len(batch) for batch in collect(forever(), limit=7)] == [3, 3, 1]
    with pytest.raises(DataError, match="limit=0"):
        collect(forever(), limit=0)


def test_batches_behave_like_a_sequence_and_can_be_walked_again():
    made = []
    batches = Batches(3, lambda i: made.append(i) or torch.full((2,), i), samples=6, description="toy")
    assert [int(batch[0]) for batch in batches] == [int(batch[0]) for batch in batches] == [0, 1, 2]
    assert int(batches[-1][0]) == 2
    assert [int(batch[0]) for batch in batches[1:]] == [1, 2]
    with pytest.raises(IndexError):
        batches[3]
    assert made == [0, 1, 2, 0, 1, 2, 2, 1, 2]


BASE = (torch.arange(6.0).view(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "other",
    [
        (torch.arange(6.0).view(3, 2), torch.tensor([0, 1])),
        (torch.arange(6.0).view(2, 3) + torch.tensor([1e-6] + [0] * 2), torch.tensor([0, 1])),
        (torch.arange(6.0).view(2, 3), torch.tensor([1, 0])),
        (torch.arange(6.0).view(2, 3), torch.tensor([0, 1], dtype=torch.int32)),
        (torch.arange(6.0).view(2, 3).double(), torch.tensor([0, 1])),
        torch.arange(6.0).view(2, 3),
        {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor([0, 1])},
    ],
    ids=["shape", "value", "target", "target type", "type", "no target", "names"],
)
def test_any_difference_changes_the_fingerprint(other):
    assert fingerprint([other]) != fingerprint([BASE])


def test_the_fingerprint_ignores_what_does_not_change_a_result():
    images = torch.randn(2, 3, 4, 5)
    assert fingerprint([images]) == fingerprint([images.to(memory_format=torch.channels_last)])
    a, b = torch.zeros(1), torch.ones(1)
    assert fingerprint([{"a": a, "b": b}]) == fingerprint([OrderedDict(b=b, a=a)])
    assert fingerprint([BASE]) == fingerprint(iter([list(BASE)]))


def test_the_fingerprint_sees_order_borders_and_plain_values():
    a, b = torch.zeros(2), torch.ones(2)
    prints = {
        fingerprint(batches)
        for batches in ([a, b], [b, a], [torch.cat([a, b])], [a], [{"x": a, "n": 1}], [{"x": a, "n": 2}], [a.bool()])
    }
    assert len(prints) == 7
    assert fingerprint([a.bfloat16()]) != fingerprint([a.half()])
