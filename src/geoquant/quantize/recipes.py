"""What is done beyond the plan, and how much time may it take?

A recipe names a rounding, whether norms and biases are corrected, and a refinement that learns codes afterwards.
Efforts are recipes by name: ``fast`` takes two forwards over the calibration set, ``balanced`` adds GPTQ, ``best``
learns all codes together and takes minutes. Which of them wins is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from geoquant.errors import PlanError, UnknownNameError, suggest
from geoquant.grids import QuantizedMatrix
from geoquant.models import Forward, Site
from geoquant.quantize.blocks import BlockTuning
from geoquant.quantize.correction import is_stored_norm
from geoquant.quantize.network import NetworkTuning
from geoquant.registry import Registry
from geoquant.rounding import ROUNDINGS, Rounding, uses_inputs

NORMS = ("relative", "none")


class Refinement(Protocol):
    """Learns better codes for a model that is already rounded and corrected."""

    def __call__(
        self,
        reference: nn.Module,
        model: nn.Module,
        sites: Sequence[Site],
        matrices: Mapping[str, QuantizedMatrix],
        batches: Sequence[Any],
        forward: Forward | None = None,
        seed: int = 0,
    ) -> dict[str, QuantizedMatrix]:
        """Improve `model` in place; return the codes of all sites."""
        ...


REFINEMENTS: Registry[Refinement] = Registry("refinement")
REFINEMENTS.register("blocks", BlockTuning())
REFINEMENTS.register("network", NetworkTuning())


def suited(reference: nn.Module, model: nn.Module, *rest: Any, **named: Any) -> dict[str, QuantizedMatrix]:
    """Refine block by block where `model` has batch norms, else the network as a whole."""
    normed = any(is_stored_norm(module) for module in model.modules())
    return REFINEMENTS["blocks" if normed else "network"](reference, model, *rest, **named)


@dataclass(frozen=True)
class Recipe:
    """How a plan is carried out.

    Attributes:
        rounding: a registered rounding, or one of your own.
        norms: "relative" or "none".
        refine: a registered refinement, one of your own, or None.
    """

    rounding: str | Rounding = "nearest"
    norms: str = "none"
    refine: str | Refinement | None = None

    @property
    def method(self) -> Rounding:
        """The rounding itself."""
        return ROUNDINGS[self.rounding] if isinstance(self.rounding, str) else self.rounding

    @property
    def refinement(self) -> Refinement | None:
        """The refinement itself."""
        return REFINEMENTS[self.refine] if isinstance(self.refine, str) else self.refine

    @property
    def needs_data(self) -> bool:
        """Whether any part looks at calibration batches."""
        return uses_inputs(self.method) or self.norms != "none" or self.refine is not None

    def check(self, calibrated: bool) -> None:
        """Refuse unknown names, and what needs data where there is none."""
        if self.norms not in NORMS:
            raise UnknownNameError(f"there is no norm correction named '{self.norms}'{suggest(self.norms, NORMS)}")
        if calibrated:
            return
        wants = f"the rounding '{self.rounding}' looks at the layers' inputs" if uses_inputs(self.method) else ""
        wants = wants or (f"the norm correction '{self.norms}' compares statistics" if self.norms != "none" else "")
        wants = wants or (f"the refinement '{self.refine}' learns from data" if self.refinement is not None else "")
        if wants:
            raise PlanError(f"{wants}; pass calibration batches")


BLIND = Recipe()
EFFORTS = {
    "fast": Recipe("nearest", "relative"),
    "balanced": Recipe("descent", "relative"),
    "best": Recipe("gptq", "relative", suited),
}


def choose_recipe(
    effort: str | None,
    rounding: str | Rounding | None,
    norms: str | None,
    refine: str | Refinement | None,
    calibrated: bool,
) -> Recipe:
    """Start from an effort ("balanced" with calibration, plain nearest rounding without) and change what is given.

    Raises:
        UnknownNameError: a name is unknown.
        PlanError: something needs calibration and there is none.

    >>> choose_recipe(None, None, None, None, calibrated=True)
    Recipe(rounding='descent', norms='relative', refine=None)
    >>> choose_recipe("best", "nearest", None, "none", calibrated=True)
    Recipe(rounding='nearest', norms='relative', refine=None)
    """
    if effort is not None and effort not in EFFORTS:
        raise UnknownNameError(f"there is no effort named '{effort}'{suggest(effort, EFFORTS)}")
    if effort is None:
        recipe = EFFORTS["balanced"] if calibrated else BLIND
    else:
        recipe = EFFORTS[effort]
    if rounding is not None:
        recipe = replace(recipe, rounding=rounding)
    if norms is not None:
        recipe = replace(recipe, norms=norms)
    if refine is not None:
        recipe = replace(recipe, refine=None if refine == "none" else refine)
    recipe.check(calibrated)
    return recipe
