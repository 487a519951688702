"""What are the extreme eigenvalues of a symmetric operator that can only be applied?

Lanczos with full reorthogonalisation, in float64 for the small matrix, for a stack of independent
operators at once (one per sample; a stack of one for a whole loss). Every answer carries its residual
‖Mv − θv‖, within which an eigenvalue certainly lies (up to rounding). It does not prove that this is the
largest one: a start orthogonal to an eigenvector never finds it, which for a random start has
probability zero. Repeated eigenvalues are found once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geoquant.errors import GeoquantError

Apply = Callable[[Tensor], Tensor]
Which = Literal["largest", "magnitude"]

# A next direction this small, relative to the operator's size so far, means that the Krylov space is exhausted.
_EXHAUSTED = 1e-10


@dataclass(frozen=True, eq=False)
class Ritz:
    """Approximate eigenpairs of one operator, ascending.

    Attributes:
        values: (steps,), float64.
        weights: (steps,), squared first components: the quadrature weights of the start vector.
        residuals: (steps,), ‖Mv − θv‖ of each pair.
        coordinates: (steps, steps), columns are the vectors in the Lanczos basis.
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor
    coordinates: Tensor


class Lanczos:
    """The Krylov space of a stack of symmetric operators, grown step by step.

    Args:
        apply: maps (stack, size) to (stack, size), row by row, symmetric.
        start: (stack, size), nonzero rows.

    >>> matrix = torch.diag(torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64))
    >>> space = Lanczos(lambda rows: rows @ matrix, torch.ones(1, 3, dtype=torch.float64))
    >>> space.run(3)
    >>> [round(value, 6) for value in space.ritz(0).values.tolist()]
    [-2.0, 1.0, 5.0]
    """

    def __init__(self, apply: Apply, start: Tensor) -> None:
        norms = start.norm(dim=1, keepdim=True)
        if not bool((norms > 0).all()) or not bool(norms.isfinite().all()):
            raise GeoquantError("Lanczos needs a finite, nonzero start vector")
        self._apply = apply
        self._basis = [start / norms]
        self._diagonal: list[Tensor] = []
        self._off: list[Tensor] = []
        self._alive = torch.ones(len(start), dtype=torch.bool)
        self._lengths = torch.zeros(len(start), dtype=torch.long)
        self._scale = torch.zeros(len(start), dtype=torch.float64)

    @property
    def steps(self) -> int:
        """Applications so far."""
        return len(self._diagonal)

    @property
    def exhausted(self) -> bool:
        """Whether every operator's Krylov space is complete; then its Ritz values are eigenvalues."""
        return not bool(self._alive.any())

    def run(self, steps: int) -> None:
        """Apply the operators up to `steps` more times."""
        for _ in range(steps):
            if self.exhausted:
                return
            self._step()

    def _step(self) -> None:
        current = self._basis[-1]
        image = self._apply(current)
        alpha = (image * current).sum(1)
        # Twice is enough (Parlett): one pass leaves what cancellation spoiled.
        for _ in range(2):
            for vector in self._basis:
                image = image - (image * vector).sum(1, keepdim=True) * vector
        beta = image.norm(dim=1)
        self._diagonal.append(alpha.double().cpu())
        self._off.append(beta.double().cpu())
        self._lengths += self._alive
        self._scale = torch.maximum(self._scale, alpha.double().cpu().abs() + beta.double().cpu())
        self._alive &= self._off[-1] > _exhausted(image.dtype) * self._scale
        keep = self._alive.to(image.device).unsqueeze(1)
        self._basis.append(torch.where(keep, image / beta.clamp(min=torch.finfo(beta.dtype).tiny).unsqueeze(1), 0.0))

    def ritz(self, member: int) -> Ritz:
        """Return the Ritz pairs of one operator of the stack."""
        length = int(self._lengths[member])
        diagonal = torch.stack(self._diagonal)[:length, member]
        off = torch.stack(self._off)[:length, member]
        matrix = torch.diag(diagonal) + torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1)
        values, vectors = torch.linalg.eigh(matrix)
        return Ritz(values, vectors[0].square(), (off[-1] * vectors[-1]).abs(), vectors)

    def vector(self, member: int, coordinates: Tensor) -> Tensor:
        """Return the unit vector with `coordinates` (steps,) in the Lanczos basis, (size,)."""
        total = torch.zeros_like(self._basis[0][member])
        for weight, vector in zip(coordinates.tolist(), self._basis, strict=False):
            total = total + weight * vector[member]
        norm: Tensor = total.norm()
        return total / norm


def _exhausted(dtype: torch.dtype) -> float:
    return max(_EXHAUSTED, 50 * torch.finfo(dtype).eps)


@dataclass(frozen=True, eq=False)
class Extremes:
    """Leading eigenpairs of each operator of a stack.

    Attributes:
        values: (stack, count); columns by decreasing value (or magnitude).
        residuals: (stack, count).
        vectors: (stack, count, size).
        steps: applications spent.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    steps: int


def extreme_eigenvalues(
    apply: Apply,
    start: Tensor,
    *,
    count: int = 1,
    which: Which = "largest",
    tolerance: float = 1e-3,
    max_steps: int = 100,
) -> Extremes:
    """Return the leading eigenvalues of a stack of symmetric operators.

    Args:
        apply: maps (stack, size) to (stack, size).
        start: random (stack, size).
        count: eigenvalues per operator.
        which: by value or by magnitude.
        tolerance: stop once every residual is at most this share of the leading magnitude.
        max_steps: at most this many applications; the residuals say what was reached.

    >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -4.0], dtype=torch.float64))
    >>> start = torch.ones(1, 3, dtype=torch.float64)
    >>> found = extreme_eigenvalues(lambda rows: rows @ matrix, start, which="magnitude")
    >>> round(found.values.item(), 6)
    -4.0
    """
    if count < 1 or max_steps < 1:
        raise GeoquantError(f"count={count} and max_steps={max_steps} must be at least 1")
    space = Lanczos(apply, start)
    while True:
        space.run(min(4 if space.steps >= count else count, max_steps - space.steps))
        pairs = [_leading(space.ritz(member), count, which) for member in range(len(start))]
        done = all(_converged(values, residuals, tolerance) for values, residuals, _ in pairs)
        if done or space.exhausted or space.steps >= max_steps:
            break
    width = min(len(values) for values, _, _ in pairs)
    vectors = [
        torch.stack([space.vector(member, column) for column in coordinates.T[:width]])
        for member, (_, _, coordinates) in enumerate(pairs)
    ]
    values = torch.stack([values[:width] for values, _, _ in pairs])
    residuals = torch.stack([residuals[:width] for _, residuals, _ in pairs])
    return Extremes(values, residuals, torch.stack(vectors), space.steps)


def dominant(
    apply: Apply, start: Tensor, *, tolerance: float = 1e-4, cycle: int = 20, max_steps: int = 400
) -> Extremes:
    """Return the eigenvalue of largest magnitude of each operator, in the memory of one short cycle.

    Lanczos restarted from its best vector: far fewer applications than power iteration, and never more than
    `cycle` vectors. Arguments and result as in `extreme_eigenvalues`.

    >>> matrix = torch.diag(torch.linspace(-1.0, 2.0, 50, dtype=torch.float64))
    >>> found = dominant(lambda rows: rows @ matrix, torch.ones(1, 50, dtype=torch.float64), cycle=8)
    >>> round(found.values.item(), 6)
    2.0
    """
    spent, current = 0, start
    while True:
        steps = min(cycle, max_steps - spent)
        found = extreme_eigenvalues(apply, current, which="magnitude", tolerance=tolerance, max_steps=steps)
        spent += found.steps
        converged = bool((found.residuals <= tolerance * found.values.abs()).all())
        if converged or found.steps < steps or spent >= max_steps:
            return Extremes(found.values, found.residuals, found.vectors, spent)
        current = found.vectors[:, 0]


def _leading(ritz: Ritz, count: int, which: Which) -> tuple[Tensor, Tensor, Tensor]:
    key = ritz.values if which == "largest" else ritz.values.abs()
    order = key.argsort(descending=True)[:count]
    return ritz.values[order], ritz.residuals[order], ritz.coordinates[:, order]


def _converged(values: Tensor, residuals: Tensor, tolerance: float) -> bool:
    return bool((residuals <= tolerance * values.abs().max()).all())
