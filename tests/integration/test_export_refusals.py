"""What cannot be exported is refused by name, with a remedy, and leaves no file behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edge_sdk.errors import EdgeError, ExportError, IdentityError
from exporters import export
from exporters.lowering import RULES
from exporters.lowering.builder import Tensor
from exporters.lowering.site import Rule, Site
from exporters.optimizers import Adagrad, Adam, RmsProp, Sgd
from tests.integration.exported import SIGNER, exported, labels

Forward = Callable[[torch.Tensor], torch.Tensor]


class _Custom(nn.Module):
    """A linear layer, then whatever is given."""

    counter: torch.Tensor

    def __init__(self, forward: Callable[[_Custom, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self._forward = nn.Linear(12, 10), forward
        self.register_buffer("counter", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, self.linear(x))


def _custom(forward: Forward) -> nn.Module:
    return _Custom(lambda _, x: forward(x))


def _counts(module: _Custom, x: torch.Tensor) -> torch.Tensor:
    module.counter.add_(1)
    return x


def _counting_integers() -> nn.Module:
    model = _Custom(lambda module, x: _counts(module, x) if module.training else x)
    model.counter = model.counter.long()
    return model


def _counting_aside() -> nn.Module:
    aside = torch.zeros(())

    def forward(x: torch.Tensor) -> torch.Tensor:
        aside.add_(1)
        return x

    return _custom(forward)


def _writes_windows(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y.unfold(1, 5, 5).zero_()
    return y


def _unused() -> nn.Module:
    model = _custom(lambda x: x)
    model.spare = nn.Linear(3, 3)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10, track_running_stats=False)),
        r"1 \(BatchNorm1d\) predicts for an example by what else is in its batch",
    ),
    "batch norm over all batches": (
        lambda: nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10, momentum=None)),
        r"1 \(BatchNorm1d\) averages over all batches that it ever saw",
    ),
    "dropout in evaluation": (lambda: _custom(lambda x: F.dropout(x, 0.5)), "random numbers that no seed is given for"),
    "item": (lambda: _custom(lambda x: x * x.sum().item()), "depend on the values in the batch"),
    "if": (lambda: _custom(lambda x: x if x.sum() > 0 else -x), "depend on the values in the batch"),
    "boolean index": (lambda: _custom(lambda x: x * x[x > 0].sum()), "depend on the values in the batch"),
    "unknown operator": (
        lambda: _custom(lambda x: torch.cummax(x, 1)[0]),
        r"in the model \(_Custom\), \S*test_export_refusals\.py:\d+ `.*torch\.cummax.*`: "
        r"operator aten\.cummax\.default cannot be exported yet",
    ),
    "transposed convolution padded by a stride": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)), nn.ConvTranspose2d(3, 2, 2, 1, 0, 1, dilation=2), nn.Flatten()
        ),
        r"in 1 \(ConvTranspose2d\): .*output_padding is not below its stride",
    ),
    "state in evaluation": (lambda: _Custom(_counts), "the model changes counter in evaluation mode too"),
    "state of integers": (_counting_integers, r"makes its buffer counter torch\.int64\[\] in its forward pass"),
    "state that is no buffer": (_counting_aside, "the model changes a tensor of its own during its forward pass"),
    "windows in place": (
        lambda: _custom(_writes_windows),
        r"aten\.\w+\.\w+ changes a part of a tensor in place, seen through aten\.unfold\.default",
    ),
    "batch size in a number": (lambda: _custom(lambda x: x * (1.0 / (len(x) + 1))), "depends on the batch size"),
    "batch size in the program": (
        lambda: _custom(lambda x: x + 1 if len(x) > 5 else x),
        "which operator runs .* depends on the batch size",
    ),
    "squeezed batch": (
        lambda: _custom(lambda x: (x.unsqueeze(2) * x.unsqueeze(1)).squeeze().mean(-1)),
        "fails on a batch of 1 in float64",
    ),
    "a size written out": (lambda: _custom(lambda x: x.reshape(6, 10)), "fails on batches of 4 and 7"),
    "no batch": (lambda: _custom(lambda x: x.sum(0)), "fails on the example|batch as its first dimension"),
    "several outputs": (lambda: nn.LSTM(12, 10), "gives a tuple, not a tensor"),
    "unused parameters": (_unused, r"the loss does not depend on spare\.weight, spare\.bias"),
    "double": (lambda: nn.Linear(12, 10).double(), r"parameter weight is torch\.float64"),
    "nothing to train": (lambda: nn.Linear(12, 10).requires_grad_(False), "no trainable parameter"),
    "no parameters": (nn.Flatten, "no trainable parameter"),
    "wrong shape": (lambda: nn.Linear(5, 10), "fails on the example"),
}


def _refused(folder: Path, model: nn.Module, x: torch.Tensor, y: torch.Tensor, **settings: object) -> ExportError:
    path = folder / "model.edge"
    path.write_bytes(b"what was there")
    with pytest.raises(ExportError) as caught:
        export(
            model,
            settings.pop("loss", F.cross_entropy),  # type: ignore[arg-type]
            example_inputs=(x,),
            example_target=y,
            path=path,
            signer=SIGNER,
            **settings,  # type: ignore[arg-type]
        )
    assert path.read_bytes() == b"what was there"
    assert [entry.name for entry in folder.iterdir()] == ["model.edge"]
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_exported(name: str, tmp_path: Path) -> None:
    build, words = MODELS[name]
    torch.manual_seed(0)
    error = _refused(tmp_path, build(), torch.randn(6, 12), labels(6))
    assert re.search(words, str(error)), str(error)


class _TwoConvolutions(nn.Module):
    """Two layers of a kind on two lines."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 2, 3), nn.Conv1d(2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.one(x.unsqueeze(1)))
        z = self.two(y)  # its gradient comes first
        return torch.as_tensor(z.flatten(1))


def test_a_gradient_is_placed_where_its_operator_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "aten.convolution_backward.default")
    error = _refused(tmp_path, _TwoConvolutions(), torch.randn(6, 12), labels(6, 8))
    assert re.match(
        r"in two \(Conv1d\), \S*test_export_refusals\.py:\d+ `z = self\.two\(y\)  # its gradient comes first`: "
        r"operator aten\.convolution_backward\.default cannot be exported yet",
        str(error),
    )


def test_random_numbers_are_refused(tmp_path: Path) -> None:
    """Scaled to nothing, noise changes no output; it is still noise."""
    model = _custom(lambda x: x + 0.0 * torch.rand_like(x))
    assert "draws random numbers" in str(_refused(tmp_path, model, torch.randn(6, 12), labels(6)))


def test_a_loss_that_is_no_scalar_is_refused(tmp_path: Path) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target, reduction="none")

    error = _refused(tmp_path, nn.Linear(12, 10), torch.randn(6, 12), labels(6), loss=loss)
    assert "the loss is not a scalar" in str(error)


def test_a_loss_that_ignores_the_target_is_refused(tmp_path: Path) -> None:
    error = _refused(
        tmp_path, nn.Linear(12, 10), torch.randn(6, 12), labels(6), loss=lambda output, _: (output * output).mean()
    )
    assert "does not depend on the target" in str(error)


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    error = _refused(
        tmp_path, nn.Linear(12, 10), torch.randn(6, 12), labels(6), loss=lambda o, y: F.cross_entropy(o / 0.0, y)
    )
    assert "not finite" in str(error)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "lion"}, "there is no optimizer 'lion'"),
        ({"learning_rate": 0.0}, "learning rate 0.0"),
        ({"learning_rate": -1.0}, "learning rate -1.0"),
        ({"batch_max": 0}, "batch_max is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    assert words in str(_refused(tmp_path, nn.Linear(12, 10), torch.randn(6, 12), labels(6), **settings))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.randn(6, 12).double(), labels(6), "dtype torch.float64"),
        (torch.randn(6, 12), torch.rand(6, 10).double(), "dtype torch.float64"),
        (torch.randn(6, 12), labels(5), "6 examples in x, but 5 targets"),
        (torch.randn(0, 12), labels(0), "empty"),
        (torch.randn(6, 12), torch.tensor(1), "no batch dimension"),
    ],
)
def test_wrong_examples_are_refused(x: torch.Tensor, y: torch.Tensor, words: str, tmp_path: Path) -> None:
    assert words in str(_refused(tmp_path, nn.Linear(12, 10), x, y))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sgd(weight_decay=-1),
        lambda: Sgd(weight_decay=float("nan")),
        lambda: Sgd(max_gradient_norm=0.0),
        lambda: Sgd(momentum=1.0),
        lambda: Sgd(momentum=0.9, dampening=1.1),
        lambda: Sgd(dampening=0.1),
        lambda: Sgd(nesterov=True),
        lambda: Sgd(momentum=0.9, nesterov=True, dampening=0.1),
        lambda: Adam(beta1=1.0),
        lambda: Adam(beta2=-0.1),
        lambda: Adam(epsilon=0.0),
        lambda: Adagrad(learning_rate_decay=-1),
        lambda: Adagrad(initial_sum=-1),
        lambda: RmsProp(alpha=1.0),
        lambda: RmsProp(momentum=-1),
    ],
)
def test_impossible_optimizers_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ExportError, match="settings are wrong"):
        make()


def test_a_key_that_cannot_be_read_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        export(
            nn.Linear(12, 10),
            F.cross_entropy,
            example_inputs=(torch.randn(6, 12),),
            example_target=labels(6),
            path=tmp_path / "model.edge",
            signer=tmp_path / "none.key",
        )


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot write"):
        export(
            nn.Linear(12, 10),
            F.cross_entropy,
            example_inputs=(torch.randn(6, 12),),
            example_target=labels(6),
            path=tmp_path / "none" / "model.edge",
            signer=SIGNER,
        )


def _wrong_sigmoid(s: Site) -> Tensor:
    return s.lazy("grad_output")


def _without_epsilon(s: Site) -> Tensor:
    """What an optimizer that drops tiny constants does to Adam."""
    return s.operand("self", "float32")


def _constant_rate(s: Site) -> Tensor:
    """The learning rate burnt in."""
    return Tensor(s.b.scalar(0.05, "float32"), (), "float32") if s.shape("self") == () else s.lazy("self")


def _off_by_a_bit(rule: Rule) -> Rule:
    def changed(s: Site) -> str:
        result = rule(s)
        assert isinstance(result, str)
        return s.b.op("Mul", result, s.b.scalar(1.001, "float32"))

    return changed


@pytest.mark.parametrize(
    ("operator", "wrong", "optimizer", "words"),
    [
        ("aten.sigmoid_backward.default", _wrong_sigmoid, "sgd", "parameter:0"),
        ("aten.add.Tensor", _without_epsilon, "adam", "parameter:"),
        ("aten.mm.default", _off_by_a_bit(RULES["aten.mm.default"]), "sgd", "parameter:"),
        ("aten.addmm.default", _off_by_a_bit(RULES["aten.addmm.default"]), "momentum", "output"),
        ("aten.sigmoid.default", lambda s: s.b.op("NoSuchOperator", s.tensor("self")), "sgd", "is not valid"),
    ],
)
def test_a_wrong_rule_never_passes(
    operator: str, wrong: Rule, optimizer: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, operator, wrong)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 10))
    with pytest.raises(EdgeError, match=words) as caught:
        exported(model, torch.randn(8, 12), labels(8), optimizer=optimizer)
    if words != "is not valid":
        assert "does not match float64 autograd" in str(caught.value)
        assert "times what is allowed" in str(caught.value)


def test_torch_is_left_as_it_was() -> None:
    threads, mkldnn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    mha = torch.backends.mha.get_fastpath_enabled()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    exported(nn.Linear(12, 10), torch.randn(6, 12), labels(6))
    assert torch.get_num_threads() == threads
    assert torch.backends.mkldnn.enabled == mkldnn
    assert torch.backends.mha.get_fastpath_enabled() == mha
    torch.manual_seed(0)
    assert torch.equal(before, torch.random.get_rng_state())
