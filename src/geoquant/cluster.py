"""Who does the work when one process is not enough: Ray workers on this machine or on a cluster.

A `Cluster` maps a function over items, with one object (such as a model and its data) sent to every worker once.
Results come back in the order of the items, so what is computed does not depend on who was faster. Ray carries
objects between processes of one user by pickling them; nothing pickled is read from a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from geoquant.errors import ClusterError, MissingExtraError
from geoquant.progress import task

LOCAL = "local"
_OWN_OPTIONS = ("num_cpus", "num_gpus", "memory")


@dataclass(frozen=True)
class Lost:
    """Stands for a result that no worker lived to give.

    Attributes:
        reason: in Ray's words.
    """

    reason: str


class Cluster:
    """Ray workers; a context manager.

    Args:
        address: ``local`` starts workers on this machine, anything else is the address of a running Ray cluster.
        jobs: workers at a time.

    Raises:
        MissingExtraError: ray is not installed.
        ClusterError: `jobs` is not positive, or nothing answers at the address.
    """

    def __init__(self, address: str = LOCAL, jobs: int = 2) -> None:
        if jobs < 1:
            raise ClusterError(f"jobs={jobs} leaves nobody to work; expected at least 1")
        self.address, self.jobs = address, jobs
        self._ray = _import_ray()
        self._started = False

    def __enter__(self) -> Cluster:
        if not self._ray.is_initialized():
            # the address is always said: without one, Ray joins a cluster that another program happens to run
            options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": "ERROR"}
            if self.address == LOCAL:
                options |= {"num_cpus": self.jobs, "include_dashboard": False}
            try:
                self._ray.init(**options)
            except Exception as error:
                raise ClusterError(self._unreached(_first_line(error))) from error
            self._started = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()
            self._started = False

    def stream(
        self,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        resources: Sequence[Mapping[str, float]],
        retries: int = 3,
    ) -> Generator[tuple[int, Any]]:
        """Yield ``(place, function(shared, items[place]))`` as the workers finish.

        An item whose worker is lost goes to another one, `retries` times; one that is lost each time yields `Lost`.

        Args:
            function: of a module that workers can import.
            shared: sent once to each of them.
            items: one call each.
            resources: what each call reserves: ``num_cpus``, ``num_gpus``, ``memory`` in bytes, or names of one's own.
            retries: of a lost worker; what `function` raises is never tried again.

        Raises:
            ClusterError: workers cannot import what they should run, or the cluster broke down.
            Whatever `function` raises.
        """
        sent = self._ray.put(shared)
        remote = self._ray.remote(function)
        places: dict[Any, int] = {}
        for place, (item, reserved) in enumerate(zip(items, resources, strict=True)):
            places[remote.options(**_options(reserved), max_retries=retries).remote(sent, item)] = place
        left = list(places)
        try:
            while left:
                done, left = self._ray.wait(left)
                for reference in done:
                    yield places[reference], self._result(reference)
        finally:
            for reference in left:
                self._ray.cancel(reference, force=True)

    def _unreached(self, reason: str) -> str:
        if self.address == LOCAL:
            return f"Ray does not start on this machine ({reason}); try again, or go on without a cluster"
        return f"no Ray cluster answers at '{self.address}' ({reason}); try 'local'"

    def _result(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RaySystemError):
                reason = _first_line(error.cause)
                raise ClusterError(f"a worker cannot load its work ({reason}); install it on every node") from error
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except exceptions.RaySystemError as error:
            raise ClusterError(f"the Ray cluster broke down ({_first_line(error)}); start it again") from error
        except exceptions.RayError as error:
            return Lost(_first_line(error))

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any], code: Iterable[ModuleType] = ()
    ) -> list[Any]:
        """Return ``[function(shared, item) for item in items]``, computed by the workers.

        Args:
            function: of a module that workers can import.
            shared: sent once to each of them.
            items: one call each.
            code: modules that workers cannot import, such as a script: they travel with the objects.

        Raises:
            Whatever `function` raises.
        """
        for module in code:
            self._ray.cloudpickle.register_pickle_by_value(module)
        try:
            sent = self._ray.put(shared)
            remote = self._ray.remote(function).options(num_cpus=1)
            waiting = [remote.remote(sent, item) for item in items]
            with task("workers", len(waiting)) as advance:
                left = list(waiting)
                while left:
                    done, left = self._ray.wait(left)
                    for _ in done:
                        advance()
            found: list[Any] = self._ray.get(waiting)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        finally:
            for module in code:
                self._ray.cloudpickle.unregister_pickle_by_value(module)
        return found


def modules_of_scripts(objects: Iterable[Any]) -> list[ModuleType]:
    """Return the modules that define the classes of `objects` and that another process cannot import by name.

    >>> modules_of_scripts([3, "text"])
    []
    """
    names = {type(each).__module__ for each in objects}
    scripts = sorted(name for name in names if name == "__main__" or name.startswith("geoquant_file_"))
    return [sys.modules[name] for name in scripts if name in sys.modules and name != "__main__"]


def _options(reserved: Mapping[str, float]) -> dict[str, Any]:
    """Sort what is reserved into Ray's own options and resources with names of one's own.

    >>> _options({"num_cpus": 2, "fast_disk": 1})
    {'num_cpus': 2, 'resources': {'fast_disk': 1}}
    """
    own: dict[str, Any] = {name: amount for name, amount in reserved.items() if name in _OWN_OPTIONS}
    rest = {name: amount for name, amount in reserved.items() if name not in _OWN_OPTIONS}
    return own | ({"resources": rest} if rest else {})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("workers in other processes need Ray: pip install geoquant[ray]") from error
    return ray
