"""What does each layer really receive, when the layers before it have just been changed?

All batches go through the model side by side: every forward pauses where it is about to call a station (a module
of interest), the caller looks at all their inputs together and may change the module, and then they go on. So one
forward over all the data visits every station in the order of execution, with inputs that come from everything
that was changed before. Only tensors that are alive at the pause are held, for all batches at once.

Works for any forward, branches that depend on the data included. It is blind to modules that keep tensors in
attributes between two stations of one forward: the forwards of other batches run in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from geoquant.models.calling import Forward, evaluating, predict


class Arrival(NamedTuple):
    """The arguments with which one forward is about to call a station."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Act = Callable[[nn.Module, Sequence[Arrival]], None]


class _Abort(BaseException):
    """Ends a paused forward whose walk has failed elsewhere."""


class _Runner(threading.Thread):
    """One forward on one batch; runs only while the conductor waits for it."""

    def __init__(self, model: nn.Module, batch: Any, forward: Forward | None) -> None:
        super().__init__(daemon=True)
        self._call = (model, batch, forward)
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._aborted = False
        self.station: nn.Module | None = None
        self.arrival = Arrival((), {})
        self.error: BaseException | None = None
        self.finished = False

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._aborted:
                with torch.no_grad():
                    predict(*self._call)
        except _Abort:
            pass
        except BaseException as error:
            self.error = error
        self.finished = True
        self._stopped.release()

    def advance(self) -> None:
        """Let the forward run to its next pause or its end."""
        self.station, self.arrival = None, Arrival((), {})
        self._go.release()
        self._stopped.acquire()

    def pause(self, station: nn.Module, arrival: Arrival) -> None:
        """Wait, inside the forward, until the conductor calls `advance`."""
        self.station, self.arrival = station, arrival
        self._stopped.release()
        self._go.acquire()
        if self._aborted:
            raise _Abort

    def abort(self) -> None:
        """End the forward wherever it is paused."""
        self._aborted = True
        self._go.release()
        self.join()


def walk_in_lockstep(
    model: nn.Module,
    batches: Sequence[Any],
    stations: Sequence[nn.Module],
    act: Act,
    forward: Forward | None = None,
    before_hooks: bool = False,
) -> None:
    """Run `model` on all `batches` side by side; call `act(station, arrivals)` once for every station reached.

    Args:
        model: run in eval mode without autograd; `act` may change the weights of the station it is given.
        batches: one forward each.
        stations: modules to pause at; a module that is called several times pauses at its first call. Their order
            decides only where forwards wait at different stations: the earliest goes first.
        act: receives the module and the arguments of every forward that waits for it, in the order of batches. To
            call the module itself, use ``type(station).forward(station, *args, **kwargs)``.
        forward: how to call the model, as in `predict`.
        before_hooks: show what arrives before the station's own hooks change it, not after.

    Raises:
        Whatever the model or `act` raises; no forward is left behind.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> def double(layer, arrivals):
    ...     print([float(arrival.args[0].sum()) for arrival in arrivals])
    ...     _ = layer.weight.data.fill_(2.0)
    >>> walk_in_lockstep(model, [torch.ones(1, 1), torch.ones(3, 1)], list(model), double)
    [1.0, 3.0]
    [2.0, 6.0]
    """
    left = dict.fromkeys(stations)
    runners = [_Runner(model, batch, forward) for batch in batches]

    def wait(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner = threading.current_thread()
        if isinstance(runner, _Runner) and module in left:
            runner.pause(module, Arrival(args, kwargs))

    hooks = [station.register_forward_pre_hook(wait, with_kwargs=True, prepend=before_hooks) for station in left]
    try:
        for runner in runners:
            runner.start()
        with evaluating(model), torch.no_grad():
            _conduct(runners, left, act)
    finally:
        for runner in runners:
            if runner.ident is not None and not runner.finished:
                runner.abort()
        for hook in hooks:
            hook.remove()


def _conduct(runners: Sequence[_Runner], left: dict[nn.Module, None], act: Act) -> None:
    """Advance all runners to their next station, act on the earliest of these, and so on until all are done."""
    places = {station: place for place, station in enumerate(left)}
    while True:
        for runner in runners:
            while not runner.finished and (runner.station is None or runner.station not in left):
                runner.advance()
            if runner.error is not None:
                raise runner.error
        waiting = [(runner.station, runner.arrival) for runner in runners if runner.station is not None]
        if not waiting:
            return
        earliest = min((station for station, _ in waiting), key=places.__getitem__)
        act(earliest, [arrival for station, arrival in waiting if station is earliest])
        del left[earliest]
