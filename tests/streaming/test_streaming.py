"""A model that is never whole in memory gets the codes that it would have got there, byte for byte."""

from __future__ import annotations

import json

import pytest
import torch

import geoquant as gq
from geoquant.errors import FileFormatError, PlanError, WeightsError
from geoquant.models import load_pretrained, take_inventory
from geoquant.streaming import Checkpoint, make_skeleton, profile_folder, quantize_folder
from language import token_batches, write_folder

GRIDS = ("int2", "int4", "int3:affine:group8", "fp32", "ternary")


def mixed_plan(model):
    """A plan with every kind of grid."""
    inventory = take_inventory(model)
    names = [GRIDS[index % len(GRIDS)] for index in range(len(inventory.sites))]
    return gq.Plan(inventory, tuple(str(gq.Grid.parse(name)) for name in names))


@pytest.mark.parametrize("rounding", ["gptq", "nearest", "stochastic"])
@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("bert", True)])
def test_the_artifact_is_that_of_the_whole_model(tmp_path, kind, tied, rounding):
    folder = write_folder(tmp_path / "net", kind, tied, shards="8KB")
    model = load_pretrained(folder)
    plan, batches = mixed_plan(model), token_batches()
    found = quantize_folder(folder, plan, tmp_path / "streamed", batches, rounding=rounding, seed=3)
    gq.quantize_(model, plan, batches, rounding=rounding, norms="none", seed=3)
    whole = gq.save(model, plan, tmp_path / "whole")
    assert found.path.read_bytes() == whole.read_bytes()
    assert found.path.stat().st_size == plan.bytes
    assert not (tmp_path / "streamed" / "parts").exists()
    loaded = gq.load(tmp_path / "streamed", load_pretrained(folder))
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "net", tied=False)
    model = load_pretrained(folder)
    plan, batches = mixed_plan(model), token_batches()
    whole = quantize_folder(folder, plan, tmp_path / "whole", batches)
    from geoquant.streaming import quantizing

    done = []

    def stopping(block, *rest, **more):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(block)
        return real(block, *rest, **more)

    real = quantizing.quantize_
    monkeypatch.setattr(quantizing, "quantize_", stopping)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(folder, plan, tmp_path / "out", batches)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.setattr(quantizing, "quantize_", real)
    found = quantize_folder(folder, plan, tmp_path / "out", batches)
    assert found.seconds[0] == 0 < found.seconds[1]
    assert found.path.read_bytes() == whole.path.read_bytes()


def test_parts_of_another_run_are_not_taken(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "net", tied=False)
    model = load_pretrained(folder)
    plan, batches = mixed_plan(model), token_batches()
    from geoquant.streaming import quantizing

    monkeypatch.setattr(quantizing.Parts, "assemble", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize_folder(folder, plan, tmp_path / "out", batches, seed=0)
    monkeypatch.undo()
    found = quantize_folder(folder, plan, tmp_path / "out", token_batches(seed=5), seed=0)
    assert all(seconds > 0 for seconds in found.seconds)
    fresh = quantize_folder(folder, plan, tmp_path / "fresh", token_batches(seed=5), seed=0)
    assert found.path.read_bytes() == fresh.path.read_bytes()


def test_the_profile_is_that_of_the_whole_model(tmp_path):
    folder = write_folder(tmp_path / "net")
    found = profile_folder(folder, grids=["int2", "int4"])
    model = load_pretrained(folder)
    whole = gq.profile(model, token_batches(), grids=["int2", "int4"], predictors=["weight_error"])
    assert found.inventory == whole.inventory
    assert found.tables[0].sites == whole.tables[0].sites
    assert torch.allclose(torch.tensor(found.tables[0].damage), torch.tensor(whole.tables[0].damage))
    assert (
        gq.allocate(found, gq.Budget(average_bits=3.5)).names == gq.allocate(whole, gq.Budget(average_bits=3.5)).names
    )


def test_a_skeleton_holds_no_weights_and_a_block_gives_them_back(tmp_path):
    folder = write_folder(tmp_path / "net")
    with Checkpoint(folder) as weights:
        skeleton = make_skeleton(folder, weights)
        assert all(parameter.is_meta for parameter in skeleton.model.parameters())
        assert not any(buffer.is_meta for buffer in skeleton.model.buffers())
        assert skeleton.list_name == "model.layers"


def test_some_channels_tell_the_error_of_all_within_their_standard_errors(tmp_path):
    folder = write_folder(tmp_path / "net")
    whole = profile_folder(folder, grids=["int2", "int4"], channels=None).tables[0]
    some = profile_folder(folder, grids=["int2", "int4"], channels=8).tables[0]
    assert not torch.tensor(whole.stderr).any()
    miss = (torch.tensor(some.damage) - torch.tensor(whole.damage)).abs()
    allowed = 5 * torch.tensor(some.stderr) + 1e-6 * torch.tensor(whole.damage)  # k and v have 8 channels: no sampling
    assert (miss <= allowed).all()
    assert (torch.tensor(some.stderr) > 0).any()


@pytest.mark.parametrize("tied", [True, False])
def test_one_block_is_alive_at_a_time(tmp_path, monkeypatch, tied):
    folder = write_folder(tmp_path / "net", tied=tied)
    from geoquant.streaming import quantizing

    alive = []

    def watching(self, block, *rest):
        alive.append([not next(each.parameters()).is_meta for each in self._blocks])
        assert all(parameter.is_meta == (block is not each) for each in self._blocks for parameter in each.parameters())
        return real(self, block, *rest)

    real = quantizing._Stream._quantize_block_
    monkeypatch.setattr(quantizing._Stream, "_quantize_block_", watching)
    quantize_folder(folder, mixed_plan(load_pretrained(folder)), tmp_path / "out", token_batches())
    assert alive == [[True, False], [False, True]]


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    folder = write_folder(tmp_path / "net")
    plan = mixed_plan(load_pretrained(folder))
    with pytest.raises(PlanError, match="pass calibration batches"):
        quantize_folder(folder, plan, tmp_path / "out", rounding="gptq")
    with pytest.raises(PlanError, match="activations in float"):
        quantize_folder(folder, plan.with_activations("int8:token"), tmp_path / "out")
    other = mixed_plan(load_pretrained(write_folder(tmp_path / "other", tied=False)))
    with pytest.raises(PlanError, match="made for another model"):
        quantize_folder(folder, other, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match="lacks 9 weights"):
        profile_folder(folder)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 25}))
    with pytest.raises(WeightsError, match=r"\(24, 16\), the model's is \(25, 16\)"):
        profile_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"holds no model\.safetensors"):
        profile_folder(folder)
    assert not (tmp_path / "out").exists()
