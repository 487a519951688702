"""geoquant's own artifact as one of the export formats; what it holds is said in `geoquant.export.packed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from geoquant.export.packed import PLAN_FILE, WEIGHTS_FILE, load, read_artifact, save
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer
from geoquant.grids import Grid
from geoquant.models import inference, predict
from geoquant.plan import METADATA_KEY, Plan


class Packed:
    """A folder with ``model.safetensors`` and ``plan.json``; any grid, to the bit."""

    name = "packed"
    suffix = ""
    options: Mapping[str, str] = {}

    def tolerance(self, plan: Plan) -> float:
        """Bit-identical."""
        return 0.0

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell the packed parts of every site."""
        return tuple(
            _layer(site.parameter, grid, sum(part.bytes for part in grid.stored(site.matrix_shape)))
            for site, grid in zip(plan.inventory.sites, plan.grids, strict=True)
        )

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Write both files."""
        save(model, plan, path)
        return self.contents(path)

    def recognizes(self, path: Path) -> bool:
        """Whether a safetensors file has geoquant's header."""
        try:
            with safe_open(_weights(path), "pt") as file:
                return METADATA_KEY in (file.metadata() or {})
        except (SafetensorError, OSError):
            return False

    def contents(self, path: Path) -> Contents:
        """Read and verify ``model.safetensors``."""
        artifact = read_artifact(path)
        sizes = {name: tensor.numel() * tensor.itemsize for name, tensor in artifact.tensors.items()}
        parts = {
            name: [f"{name}.{part.suffix}" for part in grid.stored((1, 1))] for name, grid in artifact.grids.items()
        }
        layers = tuple(
            _layer(name, grid, sum(sizes.pop(part) for part in parts[name])) for name, grid in artifact.grids.items()
        )
        files = [_weights(path), *([path / PLAN_FILE] if (path / PLAN_FILE).exists() else [])]
        notes = ("the SHA-256 of all tensors matches",)
        return Contents(self.name, path, sum(file.stat().st_size for file in files), layers, sum(sizes.values()), notes)

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Return the loaded model's forward."""
        loaded = load(path, model)

        def logits(batch: Any) -> Tensor:
            with inference(loaded):
                return predict(loaded, batch)

        return logits


def _layer(name: str, grid: Grid, size: int) -> StoredLayer:
    return StoredLayer(name, str(grid), grid.format.tokens[0], size)


def _weights(path: Path) -> Path:
    return path / WEIGHTS_FILE if path.is_dir() else path


EXPORTERS.register("packed", Packed())
