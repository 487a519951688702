"""What do all pages share: their frame, and facts as name and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import geoquant


@dataclass(frozen=True)
class Fact:
    """A name and what it is."""

    name: str
    value: str


@dataclass(frozen=True)
class File:
    """A file beside the page: what it is called there, and its relative path."""

    name: str
    path: str


def fill(template: str, content: Mapping[str, Any]) -> str:
    """Return the page; everything is escaped, and a name that the template misspells is an error."""
    loader = PackageLoader("geoquant.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(version=geoquant.__version__, **content)
