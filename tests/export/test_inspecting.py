"""Whatever lies there: listed to the byte, checked, or refused in one sentence with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import geoquant as gq
from geoquant.cli import main
from geoquant.errors import FileFormatError
from geoquant.export import EXPORTERS, contents_text, export_model, inspect
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from llamas import tiny_llama
from nets import small_net


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0), *capsys.readouterr()


def packed(folder: Path) -> Path:
    net = small_net()
    plan = uniform_plan(net, "int4", {"head": "int8"})
    gq.quantize_(net, plan)
    gq.save(net, plan, folder)
    return folder


def of_format(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        model = tiny_llama()
        plan = uniform_plan(model, "int4:group32")
        target = folder.with_name(f"{folder.name}{EXPORTERS[name].suffix}")
        export_model(quantize(model, plan), plan, target, name)
        return target

    return write


def onnx_file(folder: Path) -> Path:
    layer = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    plan = uniform_plan(layer, "int8")
    export_model(quantize(layer, plan), plan, folder.with_suffix(".onnx"), "onnx")
    return folder.with_suffix(".onnx")


def sharded(folder: Path) -> Path:
    model = tiny_llama()
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder


def plain(folder: Path) -> Path:
    folder.mkdir()
    save_file(nn.Linear(8, 4).state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "packed": (packed, "packed"),
    "gguf": (of_format("gguf"), "gguf"),
    "compressed-tensors": (of_format("compressed-tensors"), "compressed-tensors"),
    "onnx": (onnx_file, "onnx"),
    "sharded": (sharded, "safetensors"),
    "plain": (plain, "safetensors"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_to_the_byte(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, name = KINDS[kind]
    path = write(tmp_path / "thing")
    found = inspect(path)
    assert found.format == name
    code, out, _ = run(capsys, "inspect", str(path), "--json")
    assert code == 0
    document = json.loads(out)
    assert document["bytes"] == found.bytes
    assert [layer["bytes"] for layer in document["layers"]] == [layer.bytes for layer in found.layers]
    assert sum(layer["bytes"] for layer in document["layers"]) + document["others"] < document["bytes"]
    code, out, _ = run(capsys, "inspect", str(path))
    assert code == 0
    for layer in found.layers:
        line = next(line for line in out.splitlines() if line.startswith(f"{layer.name} "))
        assert f" {layer.stored} " in line
        assert f"{layer.bytes:,}" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_every_truncated_kind_is_one_sentence(
    kind: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = KINDS[kind][0](tmp_path / "thing")
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    largest = max(files, key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[: int(share * len(data))])
    capsys.readouterr()  # bars of the libraries that wrote it
    code, out, err = run(capsys, "inspect", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("geoquant: ")
    assert err.count("\n") == 1
    assert largest.name in err


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sharded(tmp_path / "thing")
    assert inspect(path).notes[0].startswith("plain tensors without a checksum")
    lost = sorted(path.glob("*.safetensors"))[1]
    lost.unlink()
    code, _, err = run(capsys, "inspect", str(path))
    assert code == 2
    assert lost.name in err


def test_an_index_that_lists_more_than_its_shards_hold(tmp_path: Path) -> None:
    path = sharded(tmp_path / "thing")
    index = path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["model.extra.weight"] = next(iter(document["weight_map"].values()))
    index.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=r"lists, such as 'model\.extra\.weight'"):
        inspect(path)


def test_the_plan_beside_packed_weights_is_checked_too(tmp_path: Path) -> None:
    path = packed(tmp_path / "thing")
    assert "plan.json matches its checksum" in inspect(path).notes
    plan = path / "plan.json"
    plan.write_text(plan.read_text().replace("int8", "int7"))
    with pytest.raises(FileFormatError, match="was changed"):
        inspect(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"three bits", "none of the kinds"),
        ("model.pt", b"PK\x03\x04", "a pickle by its name"),
        ("model.safetensors", b"\xff" * 40, "not a whole safetensors file"),
        ("model.gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, "not a whole GGUF file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        inspect(tmp_path / name)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no file or folder"):
        inspect(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match=r"holds no model\.safetensors"):
        inspect(tmp_path)


def test_totals_by_type(tmp_path: Path) -> None:
    text = contents_text(inspect(packed(tmp_path / "thing")))
    head = uniform_plan(small_net(), "int8").costs[-1].bytes
    assert f"int8: 1 of {head:,} bytes" in text
    assert "int4: 2 of" in text


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{}", "no object with a checksum"),
        ("[1]", "no object with a checksum"),
        ("{", "not a whole safetensors file"),
        ('{"sha256": "0", "layers": {"a.weight": ["int4"]}}', "does not say a grid and a reason"),
        ('{"sha256": "0", "layers": [3]}', "does not say a grid and a reason"),
        ('{"sha256": "0"}', "was changed"),
    ],
)
def test_a_note_that_is_no_note_is_damage(tmp_path: Path, note: str, message: str) -> None:
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors", {"geoquant-export": note})
    with pytest.raises(FileFormatError, match=message):
        inspect(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_groups": {"group_0": {"targets": ["a"]}}}, "damaged quantization_config"),
        ({"config_groups": [1]}, "damaged quantization_config"),
        ({"config_groups": {}}, "does not name"),
        ({"quant_method": "compressed-tensors", "config_groups": None}, "damaged quantization_config"),
    ],
)
def test_a_configuration_that_says_nonsense_is_damage(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = of_format("compressed-tensors")(tmp_path / "thing")
    document = json.loads((path / "config.json").read_text())
    document["quantization_config"] |= change
    (path / "config.json").write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=message):
        inspect(path)
