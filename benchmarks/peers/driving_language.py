"""What every driver of a language model shares: the same folder, tokens and bytes, and one form of answer.

Like `driving`, nothing here needs geoquant. A driver loads the checkpoint with transformers, quantizes it within a
budget, and answers with the nats of every test window and with how each weight is stored. Every weight counts, the
(tied) embedding once; one that a tool leaves alone counts 16 bits, as the tool would store it. These tools leave
embeddings alone, which no budget below 4 bits survives, so a driver rounds it for them first (`rounded_embedding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from driving import LayerFormat, Shapes, Task, average_bits

UNQUANTIZED = LayerFormat(16)


class LanguageJob(Task):
    """One cell: checkpoint, calibration windows (windows, tokens), test windows with labels, budget, options."""

    def __init__(self, description: dict[str, Any], folder: Path) -> None:
        import torch
        import transformers
        from safetensors.torch import load_file

        super().__init__(description, folder)
        self.checkpoint: str = description["checkpoint"]
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(self.checkpoint, dtype=torch.float32, local_files_only=True).eval()
        self.model.config.use_cache = False
        self.tied: bool = self.model.config.tie_word_embeddings
        self.calibration: Any = load_file(description["calibration"])["tokens"]
        self.test: Any = load_file(description["test"])
        self.shapes: Shapes = {name: tuple(module.weight.shape) for name, module in self.weights.items()}

    @property
    def weights(self) -> dict[str, Any]:
        """The linear layers and embeddings by name, tied ones once."""
        import torch

        found: dict[int, tuple[str, Any]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                found.setdefault(module.weight.data_ptr(), (name, module))
        return dict(found.values())

    def batches(self, size: int = 8) -> list[Any]:
        """Return the calibration windows in batches."""
        return list(self.calibration.split(size))

    def rounded_embedding(self) -> dict[str, LayerFormat]:
        """Round the embedding to the nearest of 8 bits where the budget allows that, of 4 otherwise, a scale a row."""
        import torch

        bits = 8 if self.budget >= 8 else 4
        found = {}
        for name, module in self.weights.items():
            if isinstance(module, torch.nn.Embedding):
                weight, top = module.weight.data, 2 ** (bits - 1) - 1
                scale = (weight.abs().amax(1, keepdim=True) / top).half().float().clamp_min(2**-24)
                module.weight.data = (weight / scale).round().clamp(-top, top) * scale
                found[name] = LayerFormat(bits)
        if self.tied:
            self.model.tie_weights()
        return found

    def delivered(self, layers: Mapping[str, LayerFormat]) -> float:
        """Return inclusive average bits; weights that are not named count 16."""
        return average_bits(self.shapes, {name: layers.get(name, UNQUANTIZED) for name in self.shapes})

    def refuse_below(self, bits: int, embedding: Mapping[str, LayerFormat]) -> None:
        """End with the reason where even `bits`, the least that the tool has, in all other layers break the budget."""
        least = self.delivered({**dict.fromkeys(self.shapes, LayerFormat(bits)), **embedding})
        if least > self.budget:
            raise SystemExit(f"its least, {bits} bits a weight with a scale a channel, takes {least:.3f} average bits")

    def answer(self, model: Any, layers: Mapping[str, LayerFormat], **notes: Any) -> None:
        """Evaluate the quantized model on the test windows and write their nats and the formats."""
        import torch
        import torch.nn.functional as F

        nats, counts = [], []
        with torch.no_grad():
            pairs = zip(self.test["tokens"].split(8), self.test["labels"].split(8), strict=True)
            for tokens, labels in pairs:
                logits = model(input_ids=tokens).logits[:, :-1].float()
                wanted = labels[:, 1:]
                each = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-100, reduction="none")
                nats += each.double().sum(1).tolist()
                counts += (wanted != -100).sum(1).tolist()
        self.write({name: layers.get(name, UNQUANTIZED) for name in self.shapes}, notes, nats=nats, counts=counts)
