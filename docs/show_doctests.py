"""Show the doctests of docstrings as code on the site; plain Markdown takes ``>>>`` for a quotation."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class ShowDoctests(Extension):
    """Fence every paragraph of a docstring that starts with a prompt."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one loaded object."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
