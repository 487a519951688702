"""When does straight-through training find the low-loss codeword that rounding misses? The theory, in two coordinates.

A river runs along t and falls; across it (n) the floor is flat up to `radius`, then a wall rises. Weights move freely
along t; across, they are deployed on codewords. Everything here is rational arithmetic, so that the step at which
something happens is exact. The bound is about the first entry: it says nothing about staying, nor about convergence.

Source: arXiv:2606.09012, restricted to a straight river (see `docs/sources.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from geoquant.errors import GeoquantError

Number = float | Fraction | int


def exact(number: Number) -> Fraction:
    """Return `number` as the decimal that it is written as, so that 0.34 means 34/100.

    >>> exact(0.34)
    Fraction(17, 50)
    """
    if isinstance(number, Fraction):
        return number
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def _fix(value: object, *names: str) -> None:
    """Make fields of a frozen value exact."""
    for name in names:
        object.__setattr__(value, name, exact(getattr(value, name)))


@dataclass(frozen=True)
class Codewords:
    """The points offset + step · k, k an integer, at which n can be deployed.

    >>> Codewords(-0.2, 0.7).nearest(0.3)
    Fraction(1, 2)
    """

    offset: Number
    step: Number

    def __post_init__(self) -> None:
        _fix(self, "offset", "step")
        if self.step <= 0:
            raise GeoquantError(f"codewords {float(self.step):g} apart make no grid; the step must be positive")

    def nearest(self, n: Number) -> Fraction:
        """Return the codeword nearest to n; the upper one of two."""
        step, offset = exact(self.step), exact(self.offset)
        return offset + step * math.floor((exact(n) - offset) / step + Fraction(1, 2))

    def around(self, n: Number) -> tuple[Fraction, Fraction]:
        """Return the codewords below (or at) n and above it."""
        step, offset = exact(self.step), exact(self.offset)
        low = offset + step * math.floor((exact(n) - offset) / step)
        return low, low + step


@dataclass(frozen=True)
class Landscape:
    """f(t, n) = −river · t + wall · max(|n| − radius, 0).

    >>> toy = Landscape()
    >>> float(toy.loss(0, 0.5)), float(toy.loss(0, -0.2))
    (0.1, 0.0)
    """

    river: Number = 0.2
    radius: Number = 0.4
    wall: Number = 1

    def __post_init__(self) -> None:
        _fix(self, "river", "radius", "wall")

    def loss(self, t: Number, n: Number) -> Fraction:
        """Return f(t, n)."""
        return -exact(self.river) * exact(t) + exact(self.wall) * max(abs(exact(n)) - exact(self.radius), Fraction(0))

    def inside(self, n: Number) -> bool:
        """Whether n lies in the basin."""
        return abs(exact(n)) <= exact(self.radius)

    def gradient(self, n: Number) -> tuple[Fraction, Fraction]:
        """Return (∂f/∂t, ∂f/∂n), which do not depend on t; 0 across the river on the basin's edge."""
        slope = exact(self.wall) if exact(n) > 0 else -exact(self.wall)
        return -exact(self.river), Fraction(0) if self.inside(n) else slope

    def second_order_damage(self, n: Number, codeword: Number) -> Fraction:
        """Return what slope and curvature at n predict for moving to `codeword`: all that a reconstruction sees.

        Inside the basin that is 0 for every codeword, so the choice among them is arbitrary.

        >>> [float(Landscape().second_order_damage(0.3, codeword)) for codeword in (-0.2, 0.5)]
        [0.0, 0.0]
        """
        return self.gradient(n)[1] * (exact(codeword) - exact(n))


@dataclass(frozen=True)
class Bowl:
    """½(n − target)²: no wall; what straight-through training does when no codeword is the target."""

    target: Number

    def __post_init__(self) -> None:
        _fix(self, "target")

    def gradient(self, n: Number) -> tuple[Fraction, Fraction]:
        """Return (0, n − target)."""
        return Fraction(0), exact(n) - exact(self.target)


@dataclass(frozen=True)
class Track:
    """Where a run went: point k is before step k, so point 0 is the start.

    Attributes:
        along: t of the latent weights.
        latent: n of the latent weights.
        deployed: the codeword of each.
    """

    along: tuple[Fraction, ...]
    latent: tuple[Fraction, ...]
    deployed: tuple[Fraction, ...]

    def entry(self, landscape: Landscape) -> int | None:
        """Return the first step at which the deployed weights lie in the basin; None when they never do."""
        return next((k for k, n in enumerate(self.deployed) if landscape.inside(n)), None)

    def stays(self, landscape: Landscape) -> bool:
        """Whether the deployed weights entered and were inside ever after."""
        first = self.entry(landscape)
        return first is not None and all(landscape.inside(n) for n in self.deployed[first:])

    def share(self, codeword: Number) -> float:
        """Return the share of the steps taken at `codeword`."""
        return sum(n == exact(codeword) for n in self.deployed) / len(self.deployed)

    def rounding_offset(self, steps: int | None = None) -> Fraction:
        """Return the largest |Q(n) − n| over the first `steps` points: the visited ρ of the bound."""
        pairs = list(zip(self.deployed, self.latent, strict=True))[:steps]
        return max(abs(q - n) for q, n in pairs)


def straight_through(
    landscape: Landscape | Bowl, codewords: Codewords, n: Number, *, rate: Number, steps: int, t: Number = 0
) -> Track:
    """Train with the gradient of the deployed point: w ← w − rate · ∇f(Q(w)).

    >>> toy, grid = Landscape(), Codewords(-0.2, 0.7)
    >>> run = straight_through(toy, grid, 0.3, rate=0.02, steps=100)
    >>> float(run.deployed[0]), run.entry(toy), run.stays(toy)
    (0.5, 8, True)
    """
    return _descend(landscape, codewords, n, t, rate, steps, codewords.nearest)


def float_training(
    landscape: Landscape | Bowl, codewords: Codewords, n: Number, *, rate: Number, steps: int, t: Number = 0
) -> Track:
    """Train the latent weights themselves, and round whatever comes of it: the control.

    >>> toy, grid = Landscape(), Codewords(-0.2, 0.7)
    >>> run = float_training(toy, grid, 0.3, rate=0.02, steps=2000)
    >>> run.entry(toy), float(run.along[-1])
    (None, 8.0)
    """
    return _descend(landscape, codewords, n, t, rate, steps, lambda latent: latent)


def _descend(
    landscape: Landscape | Bowl,
    codewords: Codewords,
    n: Number,
    t: Number,
    rate: Number,
    steps: int,
    at: Callable[[Fraction], Fraction],
) -> Track:
    if steps < 0 or exact(rate) <= 0:
        raise GeoquantError(f"{steps} steps at rate {rate} lead nowhere; use at least 0 steps and a positive rate")
    eta, place = exact(rate), [(exact(t), exact(n))]
    for _ in range(steps):
        along, latent = place[-1]
        slopes = landscape.gradient(at(latent))
        place.append((along - eta * slopes[0], latent - eta * slopes[1]))
    latents = tuple(latent for _, latent in place)
    return Track(tuple(along for along, _ in place), latents, tuple(codewords.nearest(each) for each in latents))


def entry_bound(r: Number, s: Number, G: Number, rho: Number, step: Number, distance: Number) -> int:
    """Return within how many straight-through steps the deployed weights first enter the basin.

    ⌈distance² / (2·step·(s·r − ρ·G) − step²·G²)⌉, provided that on all visited points ‖n(Q(w)) − n(w)‖ ≤ ρ, and that
    outside the basin ⟨n(q), ∇⊥f(q)⟩ ≥ s‖n(q)‖ and ‖∇⊥f(q)‖ ≤ G; n is a fixed orthogonal projection normal to the
    river. The first entry only: not staying, not convergence.

    Args:
        r: radius of the basin, ‖n‖ ≤ r.
        s: least inward slope outside.
        G: largest gradient across the river outside.
        rho: largest offset of rounding.
        step: learning rate.
        distance: ‖n‖ of the latent weights at the start.

    Raises:
        GeoquantError: a condition fails; nothing is known then.

    >>> entry_bound(0.4, 1, 1, 0.35, 0.02, 0.3), entry_bound(0.4, 1, 1, 0.34, 0.02, 0.3)
    (57, 45)
    """
    numbers = {"r": r, "s": s, "G": G, "rho": rho, "step": step, "distance": distance}
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0:
            raise GeoquantError(f"{name} = {float(value):g}; the bound needs finite numbers that are not negative")
    radius, slope, largest, offset, rate, start = (exact(value) for value in numbers.values())
    if slope > largest:
        raise GeoquantError(f"an inward slope of {float(s):g} exceeds the whole gradient G = {float(G):g}")
    margin = slope * radius - offset * largest
    if margin <= 0:
        raise GeoquantError(
            f"s·r = {float(slope * radius):.4g} does not exceed ρ·G = {float(offset * largest):.4g}: rounding can "
            "outweigh the wall's pull, and entry is not guaranteed; a finer grid lowers ρ"
        )
    if not 0 < rate < 2 * margin / largest**2:
        raise GeoquantError(
            f"a step of {float(rate):g} is outside (0, {float(2 * margin / largest**2):.4g}), where each step brings "
            "the weights nearer; choose one inside"
        )
    return math.ceil(start**2 / (2 * rate * margin - rate**2 * largest**2))
