"""In whose words is a plan told? Configurations of other engines, by name.

A plan knows no engine, since imports point down only: whoever knows one, `geoquant.export` or a package of a third
party (entry points ``geoquant.engine_configuration``), registers how a plan becomes that engine's configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geoquant.registry import Registry

if TYPE_CHECKING:
    from geoquant.plan.plan import Plan

CONFIGURATIONS: Registry[Callable[[Plan], Any]] = Registry("engine configuration")
