"""What do the logits become when one weight, or one layer's input, changes, without running again what comes before?

The outputs of module calls are recorded on one forward of a batch. When a site changes, every call that
ended before the site's weight is first read returns its recording, outermost calls first; all else runs.
So a change in a late layer costs a late layer. What happens inside a module's call, such as hooks that change its
input, is replayed from where that call begins. Works for any forward signature, shared modules, in-place
operations and Hugging Face models; where it cannot be exact it runs the whole model and says so
(`Replay.exact_prefix`). It is blind to prefixes that talk through plain Python state instead of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.models.calling import Forward, evaluating, predict
from geoquant.models.observation import Call, Observation, intercepted, observe
from geoquant.models.sites import Site


class Replay:
    """Partial forwards of `model` on one `batch`, starting where a changed weight is first read.

    Memory: the activations of one batch that some site needs. All forwards run in eval mode without
    autograd. Between calls the model carries no hook and no change.

    Attributes:
        reference: logits with the weights that the model had at construction.
        exact_prefix: whether recordings are used; False means that every `run` is a full forward.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> last = Site("2", "2.weight", "linear", (2, 4))
    >>> with Replay(model, torch.ones(3, 4)) as replay:
    ...     same = torch.equal(replay.run(last), replay.reference)
    ...     print(same, round(replay.fraction(last), 3))
    True 0.333
    """

    def __init__(
        self, model: nn.Module, batch: Any, forward: Forward | None = None, starts: Iterable[nn.Module] = ()
    ) -> None:
        """Run `model` twice on `batch`; `starts` are the modules that `run_from` will be asked for."""
        self._model, self._batch, self._forward = model, batch, forward
        self._outputs: dict[int, Any] = {}
        self._closed = False
        with evaluating(model), torch.no_grad():
            self._seen = observe(model, batch, forward) if _is_eager(model) else Observation()
            self._first_read = _first_reads(model, self._seen)
            self._first_call = _first_calls(self._seen, {id(module) for module in starts})
            self.reference: Tensor = self._record()
            self.exact_prefix: bool = self._verify()

    def run(self, *sites: Site) -> Tensor:
        """Return the logits with the weights that the model has now, of which only `sites` have changed.

        What comes before the first use of any of them is taken from the recordings. The result is for
        reading: it may share memory with a recording.
        """
        if self._closed:
            raise ModelError("this Replay is closed; make a new one for the batch")
        with evaluating(self._model), torch.no_grad():
            return self._run_from(self._start_of(sites))

    def run_from(self, *modules: nn.Module) -> Tensor:
        """Return the logits when nothing has changed before the first call of any of `modules`.

        Args:
            modules: among the `starts` of this replay; one that is never called makes it a full forward.

        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> replay = Replay(model, torch.ones(3, 4), starts=[model[2]])
        >>> handle = model[2].register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
        >>> bool((replay.run_from(model[2]) == model[2].bias).all()), round(replay.fraction_from(model[2]), 3)
        (True, 0.333)
        """
        if self._closed:
            raise ModelError("this Replay is closed; make a new one for the batch")
        with evaluating(self._model), torch.no_grad():
            return self._run_from(self._start_at(modules))

    def fraction(self, *sites: Site) -> float:
        """Return the share of a full forward's FLOPs that `run(*sites)` costs, in [0, 1]."""
        return self._share(self._start_of(sites))

    def fraction_from(self, *modules: nn.Module) -> float:
        """Return the share of a full forward's FLOPs that `run_from(*modules)` costs, in [0, 1]."""
        return self._share(self._start_at(modules))

    def _share(self, start: int | None) -> float:
        if start is None or self._seen.flops == 0:
            return 1.0
        saved = sum(self._seen.calls[index].flops for index in self._seen.replaced_before(start))
        return 1.0 - saved / self._seen.flops

    def close(self) -> None:
        """Free the recordings; `run` refuses from now on."""
        self._outputs.clear()
        self._closed = True

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_of(self, sites: tuple[Site, ...]) -> int | None:
        """Return the tick of the first use of `sites`; None when only a full forward is safe."""
        for site in sites:
            if site.parameter not in self._first_read:
                raise ModelError(f"this model has no parameter '{site.parameter}'; the site is another model's")
        ticks = [self._first_read[site.parameter] for site in sites]
        known = [tick for tick in ticks if tick is not None]
        return min(known) if self.exact_prefix and known and len(known) == len(ticks) else None

    def _start_at(self, modules: tuple[nn.Module, ...]) -> int | None:
        """Return the tick at which the first call of `modules` begins; None when only a full forward is safe."""
        ticks = [self._first_call.get(id(module)) for module in modules]
        known = [tick for tick in ticks if tick is not None]
        return min(known) if self.exact_prefix and known and len(known) == len(ticks) else None

    def _ticks(self) -> set[int]:
        """Return every tick that a run may start at."""
        return {tick for tick in self._first_read.values() if tick is not None} | set(self._first_call.values())

    def _record(self) -> Tensor:
        """Run the model as it is and keep the outputs that some start needs; return the logits."""
        starts = self._ticks()
        needed = {index for start in starts for index in self._seen.replaced_before(start)}
        if not needed:
            return predict(self._model, self._batch, self._forward).detach().clone()
        walk = _Walk(self._seen, needed, self._outputs)
        with intercepted(self._model, walk.recording):
            logits = predict(self._model, self._batch, self._forward)
        if walk.diverged or set(self._outputs) != needed:
            self._seen = Observation()
            self._outputs.clear()
        return logits.detach().clone()

    def _verify(self) -> bool:
        """Whether the latest possible start reproduces the reference bit for bit."""
        ticks = self._ticks()
        if not self._seen.calls or not ticks:
            return False
        logits = self._replayed(max(ticks))
        if logits is not None and torch.equal(logits, self.reference):
            return True
        self._outputs.clear()
        return False

    def _run_from(self, start: int | None) -> Tensor:
        logits = None if start is None else self._replayed(start)
        return predict(self._model, self._batch, self._forward).detach() if logits is None else logits

    def _replayed(self, start: int) -> Tensor | None:
        """Run with recordings up to `start`; None when the model took another way before it."""
        walk = _Walk(self._seen, set(self._seen.replaced_before(start)), self._outputs, start)
        with intercepted(self._model, walk.replaying):
            logits = predict(self._model, self._batch, self._forward)
        return None if walk.diverged else logits.detach()


class _Walk:
    """Follows one forward along the observed calls, recording or returning the outputs of `chosen` ones."""

    def __init__(
        self, seen: Observation, chosen: set[int], outputs: dict[int, Any], start: float = float("inf")
    ) -> None:
        self._calls, self._chosen, self._outputs = seen.calls, chosen, outputs
        self._start = start
        self._next = 0
        self.diverged = False

    def recording(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            index = self._enter(module)
            output = original(*args, **kwargs)
            if index in self._chosen:
                self._outputs[index] = _copied(output, self._calls[index])
            return output

        return recorded

    def replaying(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            index = self._enter(module)
            if index is None or index not in self._chosen:
                return original(*args, **kwargs)
            self._next = self._calls[index].after
            return _copied(self._outputs[index], self._calls[index])

        return replayed

    def _enter(self, module: nn.Module) -> int | None:
        """Return the index of the call that begins; None once past the start or off the observed way."""
        index = self._next
        if self.diverged or (index < len(self._calls) and self._calls[index].start > self._start):
            return None
        if index >= len(self._calls) or self._calls[index].module is not module:
            self.diverged = self._start == float("inf") or index < len(self._calls)
            return None
        self._next += 1
        return index


def _copied(output: Any, call: Call) -> Any:
    """Rebuild an output; its tensors are cloned when somebody writes into them after the call."""
    if isinstance(output, Tensor):
        return output.clone() if call.mutated_later else output
    if isinstance(output, dict):
        return {key: _copied(part, call) for key, part in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(_copied(part, call) for part in output)
    return output


def _first_reads(model: nn.Module, seen: Observation) -> dict[str, int | None]:
    """Map every parameter's name to the tick at which its memory was first read."""
    return {name: seen.first_read(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}


def _first_calls(seen: Observation, wanted: set[int]) -> dict[int, int]:
    """Map the identity of each wanted module to the tick at which it was first called."""
    found: dict[int, int] = {}
    for call in seen.calls:
        if id(call.module) in wanted:
            found.setdefault(id(call.module), call.start)
    return found


def _is_eager(model: nn.Module) -> bool:
    """Compiled modules keep their own copy of the forward: neither seen nor replaceable from outside."""
    return not any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
