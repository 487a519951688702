"""Folders of the Hugging Face Hub: loaded whole or refused, tied weights one site, tokens counted exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from geoquant import evaluate
from geoquant.data import evaluation_batches, load_text, tokenize
from geoquant.data.text import TextSet
from geoquant.errors import FileFormatError, ModelError, WeightsError
from geoquant.models import (
    context_length,
    find_sites,
    get_weight,
    load_model,
    load_pretrained,
    load_tokenizer,
    source_folder,
)
from language import TEXT, write_folder


def test_a_folder_loads_with_its_tokenizer_and_knows_where_it_is_from(tmp_path):
    folder = write_folder(tmp_path / "net")
    model, tokenizer = load_model(str(folder)), load_tokenizer(folder)
    assert source_folder(model) == folder
    assert context_length(model) == 32
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert bytes(tokenizer.decode(tokenizer.encode("äß", add_special_tokens=False)), "utf-8") == "äß".encode()
    sites = {site.name: site for site in find_sites(model)}
    assert sites["model.embed_tokens"].aliases == ("lm_head.weight",)  # counted once, one grid
    assert "lm_head" not in sites
    free = {site.name for site in find_sites(load_pretrained(write_folder(tmp_path / "free", tied=False)))}
    assert {"model.embed_tokens", "lm_head"} <= free


def test_shards_are_read_and_a_missing_or_cut_one_is_named(tmp_path):
    folder = write_folder(tmp_path / "net", shards="8KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    whole = load_pretrained(write_folder(tmp_path / "whole")).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_pretrained(folder).state_dict().items())
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-5])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        load_pretrained(folder)
    files[0].unlink()
    with pytest.raises(FileFormatError, match=f"lacks 1 of {len(files)} weight files"):
        load_pretrained(folder)


def test_a_missing_weight_is_refused_instead_of_drawn_at_random(tmp_path):
    folder = write_folder(tmp_path / "net")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 weights .*up_proj"):
        load_pretrained(folder)
    with pytest.raises(WeightsError, match="saved for another task"):
        load_pretrained(write_folder(tmp_path / "other"), "classification")


def test_pickles_unknown_models_and_tasks_are_refused(tmp_path):
    folder = write_folder(tmp_path / "net")
    with pytest.raises(ModelError, match="no task 'poetry'"):
        load_pretrained(folder, "poetry")
    with pytest.raises(ModelError, match="a task is there for Hugging Face folders"):
        load_model("geoquant.models.zoo:mlp3_mnist", task="causal-lm")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileFormatError, match="could execute code"):
        load_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody-knows"}))
    with pytest.raises(ModelError, match="no configuration that transformers knows"):
        load_pretrained(folder)


def test_the_loss_of_windows_is_the_mean_over_each_token_predicted_once(tmp_path):
    folder = write_folder(tmp_path / "net")
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    text = TextSet((TEXT[:40], TEXT[40:75]), "a toy")
    stream = tokenize(text.documents, tokenizer)
    found = evaluate(model, evaluation_batches(text, tokenizer, 10, stride=4, batch_size=3))
    assert found.predictions == len(stream) - 1
    losses = []
    for position in range(1, len(stream)):  # windows begin every 4 tokens; the first that holds a token predicts it
        start = max(0, -(-(position + 1 - 10) // 4)) * 4
        with torch.no_grad():
            logits = model(input_ids=stream[None, start:position]).logits[0, -1]
        losses.append(float(F.cross_entropy(logits.double(), stream[position])))
    assert found.cross_entropy.value == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.perplexity == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)


@pytest.mark.skipif(
    not {"GEOQUANT_WEIGHTS_DIR", "GEOQUANT_DATA_DIR"} <= set(os.environ), reason="needs a trained checkpoint and text"
)
def test_a_trained_checkpoint_has_its_known_loss():
    folder = Path(os.environ["GEOQUANT_WEIGHTS_DIR"]) / "stories260K"
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    text = load_text("tinystories/v2_train_head.txt", "train")
    found = evaluate(model, evaluation_batches(text, tokenizer, 512, limit=8))
    assert found.predictions == 1 + 8 * 511 - 1
    assert found.cross_entropy.value == pytest.approx(1.30, abs=0.08)  # published 1.297 on the validation stories


def test_a_model_offloaded_to_disk_evaluates_and_points_to_streaming(tmp_path):
    folder = write_folder(tmp_path / "net", tied=False)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = load_pretrained(folder, device_map=places, offload_folder=str(tmp_path / "disk"))
    assert offloaded.model.layers[1].mlp.up_proj.weight.is_meta
    batches = evaluation_batches(TextSet((TEXT[:60],), "a toy"), load_tokenizer(folder), 16)
    whole = evaluate(load_pretrained(folder), batches).cross_entropy
    assert evaluate(offloaded, batches).cross_entropy == whole
    site = next(site for site in find_sites(offloaded) if site.name == "model.layers.1.mlp.up_proj")
    with pytest.raises(ModelError, match=r"not in memory .* --stream"):
        get_weight(offloaded, site)
