"""The field's predictors: each against its own formula, written out slowly in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geoquant as gq
from geoquant.geometry import displacement_gram, output_energy_sensitivity, quadratic_form
from geoquant.models import temporarily
from geoquant.sensitivity import PREDICTORS, Subject, caq_constants, gauss_newton_shifts, make_subject
from nets import small_batches, small_net
from sensitivity.contract import check_predictor

GRIDS = ["int2", "int3", "int8"]
NEEDS_PLAIN_LAYERS = ("modelopt_gradient", "imatrix", "kfac", "caq")


class Grouped(nn.Module):
    """Grouped, strided and transposed convolutions, shared by two calls in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="reflect")
        self.shared = nn.Conv2d(4, 4, 1, bias=False)
        self.down = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        return self.head(torch.relu(self.up(torch.relu(self.down(x)))).mean((2, 3)))


class Attending(nn.Module):
    """An embedding and torch's own attention, whose projections are no layer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def grouped(labels: bool = True) -> Subject:
    torch.manual_seed(3)
    net, x = Grouped().double().eval(), torch.randn(12, 2, 7, 7).double()
    batches = [(x[:8], torch.arange(8) % 3), (x[8:], torch.arange(4) % 3)] if labels else [x[:8], x[8:]]
    return make_subject(net, batches, grids=GRIDS)


def attending(labels: bool = True) -> Subject:
    torch.manual_seed(4)
    tokens = torch.randint(0, 11, (10, 6))
    targets = torch.randint(0, 5, (10, 6))
    targets[0, :3] = -100
    return make_subject(Attending().double().eval(), [(tokens, targets) if labels else tokens], grids=GRIDS)


def rounded(subject: Subject, row: int, column: int) -> Tensor:
    return subject.sites[row].restore(subject.quantized[row][column].dequantize())


@pytest.mark.parametrize("name", PREDICTORS.names())
@pytest.mark.parametrize("labels", [True, False])
def test_laws_on_grouped_shared_and_transposed_convolutions(name: str, labels: bool) -> None:
    check_predictor(PREDICTORS[name], grouped(labels))


@pytest.mark.parametrize("name", PREDICTORS.names())
@pytest.mark.parametrize("labels", [True, False])
def test_attention_is_scored_soundly_or_refused_by_name(name: str, labels: bool) -> None:
    if name in NEEDS_PLAIN_LAYERS:
        with pytest.raises(gq.GeoquantError, match=r"'attention\.[a-z_]*proj'.*(exclude|sites)"):
            PREDICTORS[name].measure(attending(labels))
    else:
        check_predictor(PREDICTORS[name], attending(labels))


@pytest.mark.parametrize("name", NEEDS_PLAIN_LAYERS)
def test_a_refusal_leaves_no_hook_and_no_flag_behind(name: str) -> None:
    subject = attending()
    subject.model.head.weight.requires_grad_(False)
    with pytest.raises(gq.GeoquantError):
        PREDICTORS[name].measure(subject)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert not subject.model.head.weight.requires_grad
    assert subject.model.table.weight.requires_grad


def sample_gradients(subject: Subject) -> list[list[Tensor]]:
    """Return every sample's own gradient at every site, from a backward each."""
    found = []
    weights = [subject.model.get_parameter(site.parameter) for site in subject.sites]
    for inputs, targets in subject.batches:
        for x, y in zip(inputs, targets, strict=True):
            outputs = subject.model(x.unsqueeze(0))
            loss = F.cross_entropy(outputs.flatten(0, -2), y.flatten())
            found.append(list(torch.autograd.grad(loss, weights)))
    return found


@pytest.mark.parametrize("make", [grouped, attending])
def test_fit_and_gradient_norm_equal_a_backward_of_each_sample(make: object) -> None:
    subject: Subject = make()  # type: ignore[operator]
    norms = np.array([[float(g.square().sum()) for g in row] for row in sample_gradients(subject)])
    power = subject.squared_errors / np.array([[site.weights] for site in subject.sites])
    fit = PREDICTORS["fit"].measure(subject)
    np.testing.assert_allclose(fit.damage, norms.mean(0)[:, None] * power, rtol=1e-9)
    error = norms.std(0, ddof=1) / math.sqrt(len(norms))
    np.testing.assert_allclose(fit.stderr, error[:, None] * power, rtol=1e-9)
    lengths = PREDICTORS["gradient_norm"].measure(subject)
    np.testing.assert_allclose(lengths.damage, np.sqrt(norms).mean(0)[:, None] * [[1 / 4, 1 / 8, 1 / 256]], rtol=1e-9)


def test_without_labels_fit_approaches_the_fisher_information() -> None:
    # One linear layer, one input many times: drawn labels average to the Fisher information tr(diag(p) − ppᵀ)·‖x‖².
    layer = nn.Linear(3, 4, bias=False).double()
    x = torch.randn(1, 3).double()
    subject = make_subject(layer, [x.repeat(4000, 1)], grids=["int2"])
    p = layer(x).softmax(-1).detach()
    fisher = float((p * (1 - p)).sum() * x.square().sum())
    table = PREDICTORS["fit"].measure(subject)
    scale = subject.squared_errors[0, 0] / 12
    assert abs(table.damage[0][0] - fisher * scale) < 4 * table.stderr[0][0]
    assert table.stderr[0][0] < 0.05 * fisher * scale


def test_modelopt_gradient_by_hand() -> None:
    layer = nn.Linear(2, 2).double()
    x, y = torch.randn(5, 2).double(), torch.tensor([0, 1, 1, 0, 1])
    subject = make_subject(layer, [(x, y)], grids=["int2"])
    gradient = layer(x).softmax(-1) - F.one_hot(y)
    wanted = (gradient * (x @ subject.displacement(0, 0).T)).square().sum(1)
    table = PREDICTORS["modelopt_gradient"].measure(subject)
    assert table.damage[0][0] == pytest.approx(float(wanted.mean()))
    assert table.stderr[0][0] == pytest.approx(float(wanted.std() / 5**0.5))


def test_modelopt_gradient_sees_outputs_where_a_parameter_sees_all_calls() -> None:
    subject = grouped()
    table = PREDICTORS["modelopt_gradient"].measure(subject)
    outputs: list[Tensor] = []
    handle = subject.model.down.register_forward_hook(lambda _, x, y: outputs.extend([x[0], y]))
    total = 0.0
    row = [site.name for site in subject.sites].index("down")
    for x, y in subject.batches:
        outputs.clear()
        loss = F.cross_entropy(subject.model(x), y, reduction="sum")
        gradient = torch.autograd.grad(loss, outputs[1])[0]
        moved = F.conv2d(outputs[0], subject.displacement(row, 0), stride=2, groups=2)
        total += float((gradient * moved).square().sum())
    handle.remove()
    assert table.row("down")[0] == pytest.approx(total / 12)


def test_imatrix_weighs_each_input_by_its_mean_square() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(40, 3) * torch.tensor([0.1, 1.0, 5.0])
    subject = make_subject(layer, [x], grids=["int2"])
    wanted = (subject.displacement(0, 0).square() * x.square().mean(0)).sum()
    assert PREDICTORS["imatrix"].measure(subject).damage[0][0] == pytest.approx(float(wanted), rel=1e-5)


def test_imatrix_of_a_padded_grouped_convolution_and_an_embedding() -> None:
    subject = grouped()
    x = torch.cat([batch[0] for batch in subject.batches])
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    columns = F.unfold(padded, 3).square().mean((0, 2)).view(2, 9)  # (group, inputs)
    delta = subject.displacement(0, 0).reshape(2, 2, 9)
    wanted = float((delta.square() * columns.unsqueeze(1)).sum())
    assert PREDICTORS["imatrix"].measure(subject).damage[0][0] == pytest.approx(wanted)
    tokens = torch.tensor([[0, 0, 2], [0, 2, 2]])
    net = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(12, 2))
    looked = make_subject(net, [tokens], grids=["int2"])
    rows = looked.displacement(0, 0).square().sum(1)
    found = PREDICTORS["imatrix"].measure(looked).damage[0][0]
    assert found == pytest.approx(float((rows * torch.tensor([0.5, 0.0, 0.5])).sum()), rel=1e-5)


@pytest.mark.parametrize("labels", [True, False])
def test_delta_loss_is_the_first_order_change_at_the_fully_quantized_model(labels: bool) -> None:
    layer = nn.Linear(3, 4, bias=False).double()
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    subject = make_subject(layer, [(x, y) if labels else x], grids=["int2"])
    weight = rounded(subject, 0, 0).double()
    wanted = F.one_hot(y, 4) if labels else layer(x).softmax(-1)
    gradient = ((x @ weight.T).softmax(-1) - wanted).T @ x / 6
    score = float((gradient * subject.displacement(0, 0)).abs().sum())
    assert PREDICTORS["delta_loss"].measure(subject).damage[0][0] == pytest.approx(score, rel=1e-6)


def test_nmse_of_a_two_layer_net_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(9, 4)
    subject = make_subject(net, [x], grids=["int2"])

    def distance(changed: Tensor, exact: Tensor) -> Tensor:
        return (changed - exact).square().sum(1) / exact.square().sum(1)

    hidden, output = net[0](x), net(x)
    with temporarily(net, subject.sites[0], rounded(subject, 0, 0)):
        moved_hidden, moved = net[0](x), net(x)
    with temporarily(net, subject.sites[1], rounded(subject, 1, 0)):
        moved_last = net(x)
    first = (distance(moved_hidden, hidden) + distance(moved, output)) / 2 + distance(moved, output)
    last = distance(moved_last, output) / 2 + distance(moved_last, output)
    table = PREDICTORS["nmse"].measure(subject)
    assert table.damage[0][0] == pytest.approx(float(first.mean()), rel=1e-5)
    assert table.damage[1][0] == pytest.approx(float(last.mean()), rel=1e-5)
    assert table.stderr[0][0] == pytest.approx(float(first.std() / 3), rel=1e-4)


def test_spectral_norm_of_a_known_matrix() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[8.0, 0.0], [0.0, 2.0]]))
    table = PREDICTORS["spectral_norm"].measure(make_subject(layer, [torch.randn(4, 2)], grids=["int2", "int4"]))
    assert table.damage == ((8 / 4, 8 / 16),)


@pytest.mark.parametrize("make", [grouped, attending])
def test_gauss_newton_form_is_the_diagonal_of_the_gram_matrix(make: object) -> None:
    subject: Subject = make(labels=False)  # type: ignore[operator]
    columns = [0, 1, 0, 2, 1][: len(subject.sites)]
    shifts = gauss_newton_shifts(subject)
    delta = {site.name: subject.displacement(row, columns[row]) for row, site in enumerate(subject.sites)}
    wanted = displacement_gram(subject.model, subject.batches, delta, subject.sites, loss="kl").numpy() / 2
    np.testing.assert_allclose(shifts.gram(columns), wanted, rtol=1e-6, atol=1e-12)
    assert shifts.damage(columns)[0] == pytest.approx(wanted.sum())
    alone = PREDICTORS["gauss_newton_form"].measure(subject)
    for row, column in enumerate(columns):
        assert alone.damage[row][column] == pytest.approx(wanted[row, row])


def test_gauss_newton_form_with_many_classes_is_unbiased() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 100)).double()
    subject = make_subject(net, [torch.randn(600, 4).double()], grids=["int3"])
    table = PREDICTORS["gauss_newton_form"].measure(subject)
    for row, site in enumerate(subject.sites):
        exact = quadratic_form(
            net, subject.batches, {site.name: subject.displacement(row, 0)}, subject.sites, part="gauss_newton"
        ).joint.value
        assert abs(table.damage[row][0] - exact / 2) < 4 * table.stderr[row][0]
        assert table.stderr[row][0] < 0.1 * exact


@pytest.mark.parametrize("make", [grouped, attending])
def test_hessian_form_equals_hessian_vector_products(make: object) -> None:
    subject: Subject = make()  # type: ignore[operator]
    table = PREDICTORS["hessian_form"].measure(subject)
    for row, site in enumerate(subject.sites):
        form = quadratic_form(subject.model, subject.batches, {site.name: subject.displacement(row, 1)}, subject.sites)
        assert table.damage[row][1] == pytest.approx(max(form.joint.value / 2, 0.0), rel=1e-6, abs=1e-12)


def test_the_form_is_what_one_layer_kl_tends_to_when_displacements_are_small() -> None:
    net = small_net()
    with torch.no_grad():
        net.head.weight.mul_(20)
    subject = make_subject(net, small_batches(), grids=["int6"])
    form = np.array(PREDICTORS["gauss_newton_form"].measure(subject).damage)
    real = np.array(PREDICTORS["one_layer_kl"].measure(subject).damage)
    np.testing.assert_allclose(form, real, rtol=0.1)


def test_kfac_is_exact_for_one_sample_and_one_layer() -> None:
    layer = nn.Linear(3, 4, bias=False).double()
    subject = make_subject(layer, [torch.randn(1, 3).double()], grids=["int2"])
    exact = PREDICTORS["gauss_newton_form"].measure(subject).damage[0][0]
    assert PREDICTORS["kfac"].measure(subject).damage[0][0] == pytest.approx(exact)


def test_kfac_drops_what_ties_inputs_to_outputs() -> None:
    # Two samples with different inputs and different certainty: A ⊗ G is not the mean of the products.
    layer = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.1], [-3.0, 0.2]]))
    subject = make_subject(layer, [torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()], grids=["int2"])
    exact = PREDICTORS["gauss_newton_form"].measure(subject).damage[0][0]
    assert PREDICTORS["kfac"].measure(subject).damage[0][0] != pytest.approx(exact, rel=0.01)


def test_sequences_of_several_lengths_are_weighed_by_their_predictions() -> None:
    subject = attending(labels=False)
    tokens = subject.batches[0]
    mixed = make_subject(subject.model, [tokens[:4, :3], tokens[4:]], grids=["int3"])
    table = PREDICTORS["gauss_newton_form"].measure(mixed)
    for row, site in enumerate(mixed.sites):
        delta = {site.name: mixed.displacement(row, 0)}
        form = quadratic_form(mixed.model, mixed.batches, delta, mixed.sites, part="gauss_newton", loss="kl")
        assert table.damage[row][0] == pytest.approx(form.joint.value / 2)


def test_hessian_diagonal_is_that_of_the_dense_hessian() -> None:
    layer = nn.Linear(3, 4, bias=False).double()
    x, y = torch.randn(32, 3).double(), torch.randint(0, 4, (32,))
    hessian = torch.func.hessian(lambda w: F.cross_entropy(x @ w.T, y))(layer.weight.detach()).reshape(12, 12)
    subject = make_subject(layer, [(x, y)], grids=["int2"])
    wanted = float((hessian.diagonal() * subject.displacement(0, 0).flatten().square()).sum()) / 2
    assert PREDICTORS["hessian_diagonal"].measure(subject).damage[0][0] == pytest.approx(wanted)


def test_caq_constants_of_a_chain() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(16, 4).double()
    subject = make_subject(net, [x], grids=["int2", "int4"])
    one, two = caq_constants(subject)
    for layer, found in ((net[0], one), (net[2], two)):
        energy = output_energy_sensitivity(layer, torch.randn(3, layer.in_features).double()).value
        assert found.kappa == pytest.approx(energy, rel=1e-6)
        assert found.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(layer.weight, 2)))
    assert one.diameter == pytest.approx(float(x.norm(dim=1).max()))
    damage = np.array(PREDICTORS["caq"].measure(subject).damage)

    def error(constants: object, bits: int) -> float:
        return constants.lipschitz * constants.diameter / 2**bits + constants.kappa * constants.diameter**2 / 4**bits

    ratio = error(one, 2) * two.lipschitz / error(two, 4)
    assert damage[0, 0] / damage[1, 1] == pytest.approx(ratio)
    assert damage.max() == 1


def test_caq_uses_the_norm_of_the_convolution_and_the_order_of_calls() -> None:
    subject = grouped()
    constants = {found.site: found for found in caq_constants(subject)}
    kernel = subject.model.first.weight.detach()
    reshaped = float(torch.linalg.matrix_norm(kernel.flatten(1), 2))
    assert constants["first"].lipschitz > 1.01 * reshaped
    assert [constants[name].order for name in ("first", "shared", "down", "up", "head")] == [0, 1, 2, 3, 4]


def test_labels_that_do_not_fit_are_refused() -> None:
    subject = make_subject(nn.Linear(3, 4), [(torch.randn(6, 3), torch.zeros(6, 2, dtype=torch.long))], grids=["int2"])
    for name in ("fit", "gradient_norm", "modelopt_gradient", "delta_loss"):
        with pytest.raises(gq.GeoquantError, match="expected one class per prediction"):
            PREDICTORS[name].measure(subject)


def test_a_causal_language_model_with_its_own_labels() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=70, n_positions=12)).eval()
    tokens = torch.randint(0, 70, (6, 8))
    batches = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}]
    subject = make_subject(net, batches, grids=["int2", "int8"])
    fit = PREDICTORS["fit"].measure(subject)
    weights = [net.get_parameter(site.parameter) for site in subject.sites]
    norms = []
    for row in tokens:
        loss = net(input_ids=row[None], labels=row[None]).loss  # shifted inside, a mean over tokens
        found = torch.autograd.grad(loss, weights)
        norms.append([float(g.double().square().sum()) for g in found])
    power = subject.squared_errors / np.array([[site.weights] for site in subject.sites])
    np.testing.assert_allclose(fit.damage, np.mean(norms, 0)[:, None] * power, rtol=1e-3)
    for name in PREDICTORS.names():
        chosen = subject
        if name in NEEDS_PLAIN_LAYERS:  # a table of positions has one row for all samples
            chosen = make_subject(net, batches, grids=["int2", "int8"], exclude=["transformer.wpe", "transformer.wte"])
        table = PREDICTORS[name].measure(chosen)
        assert np.isfinite(table.damage).all(), name


def test_the_documentation_lists_every_predictor() -> None:
    page = Path(__file__).parents[2] / "docs" / "predictors.md"
    listed = [line.split("`")[1] for line in page.read_text().splitlines() if line.startswith("| `")]
    assert sorted(listed) == PREDICTORS.names()
