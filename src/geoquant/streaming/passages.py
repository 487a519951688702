"""With what does a model call its blocks, and what does it do with what the last one gives?

Stand-ins take the places of the blocks. They note the arguments of each call, hand the hidden states on, and in the end
answer with hidden states that were computed elsewhere, so that embeddings and head run as the model itself runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geoquant.models import Forward, predict

_HIDDEN = "hidden_states"


class Call(NamedTuple):
    """The arguments of one call of a block, hidden states left out; `named` says that those are given by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: bool

    def on(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call `block` with these arguments on `hidden`; return the hidden states that it gives."""
        if self.named:
            output = block(*self.args, **{**self.kwargs, _HIDDEN: hidden})
        else:
            output = block(hidden, *self.args, **self.kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


class _Stop(Exception):  # noqa: N818 (nothing went wrong)
    """Ends a forward that has shown what it was run for."""


class _Passage(nn.Module):
    """Stands where a block stood; its other attributes are the block's."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", (block,))  # in a tuple: no submodule of this
        self.call: Call | None = None
        self.hidden: Tensor | None = None
        self.given: Tensor | None = None
        self.wraps = self.stops = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        named = not args
        self.hidden = kwargs[_HIDDEN] if named else args[0]
        rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
        self.call = Call(args[1:], rest, named)
        if self.stops:
            raise _Stop
        answer = self.hidden if self.given is None else self.given
        return (answer,) if self.wraps else answer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)


class Passages:
    """Stand-ins for all blocks of a model, whose list they take over.

    Args:
        model: whose embeddings and head have their weights.
        list_name: where the blocks are.
        batches: what the model is called on.
    """

    def __init__(self, model: nn.Module, list_name: str, batches: Sequence[Any]) -> None:
        container = model.get_submodule(list_name)
        assert isinstance(container, nn.ModuleList)
        self.model, self.batches = model, batches
        self.blocks = list(container)
        self._stand_ins = [_Passage(block) for block in self.blocks]
        for index, each in enumerate(self._stand_ins):
            container[index] = each

    @torch.no_grad()
    def first_hidden(self) -> list[Tensor]:
        """Return what the first block is given, for every batch."""
        found = []
        for batch in self.batches:
            self._run_to(0, batch)
            hidden = self._stand_ins[0].hidden
            assert hidden is not None
            found.append(hidden)
        return found

    @torch.no_grad()
    def calls(self, wraps: bool) -> list[list[Call]]:
        """Return the arguments of every block (outer list) on every batch; `wraps`: blocks answer with a tuple."""
        for each in self._stand_ins:
            each.wraps = wraps
        found: list[list[Call]] = [[] for _ in self.blocks]
        for batch in self.batches:
            self._run_to(len(self.blocks) - 1, batch)
            for calls, each in zip(found, self._stand_ins, strict=True):
                assert each.call is not None
                calls.append(each.call)
        return found

    def answers_with_tuple(self) -> bool:
        """Run the first block, which has its weights, on the first batch: does it answer with a tuple?"""
        with torch.no_grad():
            self._run_to(0, self.batches[0])
            first = self._stand_ins[0]
            assert first.call is not None
            assert first.hidden is not None
            call = first.call
            arguments = {**call.kwargs, _HIDDEN: first.hidden} if call.named else call.kwargs
            return isinstance(self.blocks[0](*(() if call.named else (first.hidden,)), *call.args, **arguments), tuple)

    def finishing_with(self, hidden: Sequence[Tensor]) -> Forward:
        """Return a way to call the model on the number of a batch, whose blocks then give ``hidden[number]``."""

        def forward(model: nn.Module, number: Any) -> Tensor:
            self._stand_ins[-1].given = hidden[int(number)]
            try:
                return predict(model, self.batches[int(number)])
            finally:
                self._stand_ins[-1].given = None

        return forward

    def _run_to(self, index: int, batch: Any) -> None:
        """Run the model until it calls block `index`."""
        self._stand_ins[index].stops = True
        try:
            predict(self.model, batch)
        except _Stop:
            pass
        finally:
            self._stand_ins[index].stops = False
