"""Models come from names, weights from safetensors; whatever does not fit is one clear sentence."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from geoquant.errors import FileFormatError, ModelError, WeightsError
from geoquant.models import load_model, load_weights_, model_fingerprint
from geoquant.models.zoo import digits_cnn

SOURCE = """
from dataclasses import dataclass
from torch import nn
import neighbour

@dataclass
class Size:
    width: int = 3

class Nets:
    small = staticmethod(lambda: nn.Linear(Size().width, neighbour.OUT))

ready = nn.Linear(1, 1)
Default = nn.Identity
number = 3

def linear():
    return nn.Linear(Size().width, neighbour.OUT)

def fails():
    raise RuntimeError("no such checkpoint")

def text():
    return "not a model"

def needs(argument):
    return nn.Linear(1, 1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "neighbour.py").write_text("OUT = 2\n")
    (tmp_path / "own_nets.py").write_text(SOURCE)
    yield tmp_path / "own_nets.py"
    for name in ("own_nets", "neighbour", "lacking"):
        sys.modules.pop(name, None)


def test_models_by_file_and_by_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load_model(f"{file}:linear")
    assert (built.in_features, built.out_features) == (3, 2)
    assert isinstance(load_model(f"{file}:Nets.small"), nn.Linear)
    assert isinstance(load_model(f"{file}:Default"), nn.Identity)
    monkeypatch.chdir(file.parent)
    assert isinstance(load_model("own_nets:linear"), nn.Linear)
    assert load_model("own_nets:ready") is load_model("own_nets:ready")  # a module object is taken as it is
    assert load_model("own_nets:linear") is not load_model("own_nets:linear")
    assert str(file.parent) not in sys.path
    assert isinstance(load_model("geoquant.models.zoo:digits_cnn"), type(digits_cnn()))


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for width in (2, 5):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "net.py").write_text(f"from torch import nn\ndef net(): return nn.Linear({width}, 1)\n")
    assert [load_model(f"{tmp_path / str(width)}/net.py:net").in_features for width in (2, 5)] == [2, 5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20", "'resnet20' names nothing to import; expected"),
        (":linear", "names nothing to import"),
        ("FILE:", "names nothing to import"),
        ("no.such.module:net", "there is no module 'no.such.module'"),
        ("/no/such/file.py:net", "there is no file /no/such/file.py"),
        ("FILE:linaer", "has no 'linaer' (did you mean 'linear'?)"),
        ("FILE:fails", "raised RuntimeError: no such checkpoint"),
        ("FILE:needs", "raised TypeError"),
        ("FILE:text", "gave a str; expected a torch.nn.Module"),
        ("FILE:number", "is a int; expected a callable"),
    ],
)
def test_bad_specs(file: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(spec.replace("FILE", str(file)))


def test_the_cause_of_a_failure_is_kept(file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"{file}:fails")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_missing_import_inside_the_module_is_not_a_missing_module(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "lacking.py").write_text("import no_such_library\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(ModelError, match=r"importing 'lacking' failed.*no_such_library"):
        load_model("lacking:net")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, dict[str, torch.Tensor], Path]:
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in digits_cnn().state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    return digits_cnn(), state, path


Saved = tuple[nn.Module, dict[str, torch.Tensor], Path]


def test_weights_load_bit_for_bit(saved: Saved) -> None:
    model, state, path = saved
    load_weights_(model, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert isinstance(load_model("geoquant.models.zoo:digits_cnn", path), nn.Module)


def test_counters_may_be_missing_and_floats_are_converted(saved: Saved) -> None:
    model, state, path = saved
    kept = {name: tensor.half() for name, tensor in state.items() if "num_batches" not in name}
    save_file(kept, path)
    load_weights_(model, path)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, kept["head.weight"].float())


@pytest.mark.parametrize("fault", ["missing", "extra", "both", "shape", "kind"])
def test_what_does_not_fit_is_named_and_changes_nothing(saved: Saved, fault: str) -> None:
    model, state, path = saved
    before = model_fingerprint(model)
    wrong = dict(state)
    if fault in ("missing", "both"):
        for name in [name for name in wrong if name.startswith("features") and name.endswith("weight")]:
            del wrong[name]
    if fault in ("extra", "both"):
        wrong["head.scale"] = torch.zeros(1)
    if fault == "shape":
        wrong["head.weight"] = torch.zeros(10, 31)
    if fault == "kind":
        wrong["head.weight"] = torch.zeros(10, 32, dtype=torch.int32)
    save_file(wrong, path)
    expected = {
        "missing": r"6 missing \(features\.0\.weight, features\.1\.weight, features\.3\.weight and 3 more\)",
        "extra": r"1 extra \(head\.scale\)",
        "both": r"6 missing .* and 1 extra \(head\.scale\)",
        "shape": r"head\.weight is \(10, 31\), the model's is \(10, 32\)",
        "kind": r"head\.weight is torch\.int32, the model's is torch\.float32",
    }
    with pytest.raises(WeightsError, match=expected[fault]):
        load_weights_(model, path)
    assert model_fingerprint(model) == before


def test_every_truncation_is_noticed(saved: Saved) -> None:
    model, _, path = saved
    whole = path.read_bytes()
    before = model_fingerprint(model)
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="not a whole safetensors file"):
            load_weights_(model, path)
    assert model_fingerprint(model) == before


def test_pickles_are_refused_without_being_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trap,)  # type: ignore[return-value]

    for name in ("weights.pt", "weights.bin", "renamed.safetensors"):
        torch.save({"weight": Trap()}, tmp_path / name)
        with pytest.raises(FileFormatError, match=r"is a pickle.*weights_only=True"):
            load_weights_(nn.Linear(1, 1), tmp_path / name)
    assert not trap.exists()


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="No such file"):
        load_weights_(nn.Linear(1, 1), tmp_path / "none.safetensors")


def test_tied_weights_may_be_stored_under_any_of_their_names(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    target = LlamaForCausalLM(config)
    for dropped in ("lm_head.weight", "model.embed_tokens.weight"):
        save_file({name: tensor for name, tensor in state.items() if name != dropped}, tmp_path / "w.safetensors")
        load_weights_(target, tmp_path / "w.safetensors")
        assert torch.equal(target.lm_head.weight, model.lm_head.weight)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="different values"):
        load_weights_(target, tmp_path / "w.safetensors")
    assert torch.equal(target.lm_head.weight, model.lm_head.weight)


def test_fingerprint_sees_every_bit_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = digits_cnn()
    mark = model_fingerprint(model)
    same = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for module in same.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked += 1
    assert model_fingerprint(same) == mark
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        changed = copy.deepcopy(model)
        flat = changed.state_dict()[name].view(-1)
        flat[0] = torch.nextafter(flat[0], flat[0] + 1)
        assert model_fingerprint(changed) != mark, name
    assert model_fingerprint(model.to(torch.bfloat16)) != mark
