"""Run a function of torch tensors and write down every ATen operator it dispatches, backward pass included.

The function runs twice, on batches of two sizes. Whatever number differs between the runs depends on the
batch, and is kept as a symbol; whatever tensor differs in neither run nor input is a constant. So the trace
needs no symbolic shapes, and costs two steps. A function that does something else for another batch size, or
that looks at values to decide, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sdk.errors import ExportError
from exporters.align import DTYPE_NAMES, Recording, Value, merge
from exporters.graph import Argument, Call, DType, Graph, Ref, references

Tensors = Mapping[str, torch.Tensor]

# Operators that make no sense in a graph for a device, whatever the tables below can do.
_REFUSED = {
    "aten::native_batch_norm": (
        "normalising over the batch ties examples together, which a federated step must not",
        "replace BatchNorm by torch.nn.GroupNorm, and InstanceNorm by GroupNorm with a group for each channel",
    ),
    "aten::native_dropout": (
        "dropout needs randomness inside the graph, which this exporter cannot offer yet",
        "set p=0 or remove the layer",
    ),
    "aten::bernoulli": (
        "dropout needs randomness inside the graph, which this exporter cannot offer yet",
        "set p=0 or remove the layer",
    ),
}
_REFUSED["aten::bernoulli_"] = _REFUSED["aten::bernoulli"]
_REFUSED["aten::_native_batch_norm_legit"] = _REFUSED["aten::native_batch_norm"]
_REFUSED["aten::_batch_norm_with_update"] = _REFUSED["aten::native_batch_norm"]

# Arguments that say where and how a tensor lies in memory; a graph has no such thing.
_PLACEMENT = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "copy"}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Writes down what is dispatched while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default torch wraps the method below so that it imports torch._dynamo: two seconds for nothing.
        return False

    def __init__(self, supported: Container[str], buffers: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.modules: list[str] = []
        self._supported = supported
        self._buffers = buffers
        self._refs: dict[int, Ref] = {}
        self._captured: set[Ref] = set()
        self._stale: dict[int, str] = {}
        self._callers: dict[str, str] = {}

    def add_input(self, name: str, tensor: torch.Tensor) -> None:
        """Make a tensor an input of the graph."""
        self.recording.inputs[name] = self._new(tensor, None)

    def add_output(self, name: str, tensor: torch.Tensor) -> None:
        """Make a tensor an output of the graph."""
        self.recording.outputs[name] = self._ref(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.modules:
            self._callers[_family(func)] = self.modules[-1]
        if func._schema.name in _REFUSED or torch.Tag.nondeterministic_seeded in func.tags:
            raise self._refusal(func)
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        if str(func) not in self._supported:
            decomposed = self._decompose(func, args, kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = func(*args, **kwargs)
        self._write(func, args, kwargs, result)
        return result

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Record an in-place operator as its functional twin, whose result takes the tensor's place."""
        twin = _functional(func)
        if twin is None or not args or not isinstance(args[0], torch.Tensor):
            raise self._unsupported(func)
        target = args[0]
        if self._refs.get(id(target)) in (None, *self._captured):
            name = self._buffers.get(id(target), "a tensor of its own")
            raise ExportError(
                f"{self._where(func)}the model changes {name} during its forward pass",
                hint="state that changes in forward cannot be federated: make forward a pure function",
            )
        with self:
            result = twin(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:
            # It changes how the tensor is seen, not its values, so what shares them is not touched.
            func(*args, **kwargs)
            self._refs[id(target)] = self._ref(result)
            return target
        after = self._ref(result)
        for value in self.recording.values:
            match _overlap(value.tensor, target):
                case "same":
                    self._refs[id(value.tensor)] = after
                case "partly":
                    self._stale[id(value.tensor)] = str(func)
                case "apart":
                    pass
        target.copy_(result)
        return target

    def _decompose(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that has no rule as the simpler ones it is made of, if torch knows them."""
        decomposition = torch._decomp.decomposition_table.get(func)
        with self:
            if decomposition is not None:
                return decomposition(*args, **kwargs)
            return func.decompose(*args, **kwargs)

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        arguments = self._arguments(func, args, kwargs)
        sources = [ref for argument in arguments.values() for ref in references(argument)]
        constant = all(self.recording.values[ref.index].constant is not None for ref in sources)
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if tags and not constant:
            raise ExportError(
                f"{self._where(func)}{func} makes the computation depend on the values in the batch",
                hint="avoid .item(), nonzero(), boolean indexing and `if` on tensors; use torch.where",
            )
        if not isinstance(result, torch.Tensor | list | tuple):
            return
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        outputs = tuple(
            self._new(tensor, tensor.clone() if constant else None) if isinstance(tensor, torch.Tensor) else None
            for tensor in results
        )
        if not constant and str(func) not in self._supported:
            raise self._unsupported(func)
        self.recording.calls.append(Call(str(func), arguments, outputs, self._module(func)))

    def _arguments(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Argument]:
        bound = {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.name in _PLACEMENT:
                continue
            if position < len(args) and not argument.kwarg_only:
                value = args[position]
            else:
                value = kwargs.get(argument.name, argument.default_value)
            bound[argument.name] = self._argument(value)
        return bound

    def _argument(self, value: Any) -> Argument:
        match value:
            case torch.Tensor():
                return self._ref(value)
            case torch.dtype():
                return DType(DTYPE_NAMES.get(value, str(value)))
            case list() | tuple():
                return tuple(self._argument(item) for item in value)
            case bool() | int() | float() | str() | None:
                return value
            case _:
                raise ExportError(
                    f"{self._where(None)}an operator takes {value!r}, which a graph cannot hold",
                    hint="use real tensors and plain numbers",
                )

    def _ref(self, tensor: torch.Tensor) -> Ref:
        if id(tensor) in self._stale:
            raise ExportError(
                f"{self._where(None)}{self._stale[id(tensor)]} changed a part of a tensor in place that is used again",
                hint="write it without in-place changes, for example with torch.where or torch.cat",
            )
        ref = self._refs.get(id(tensor))
        if ref is None:
            ref = self._new(tensor, tensor.detach().clone())
            self._captured.add(ref)
        return ref

    def _new(self, tensor: torch.Tensor, constant: torch.Tensor | None) -> Ref:
        ref = self._refs[id(tensor)] = Ref(len(self.recording.values))
        self.recording.values.append(Value(tensor, tuple(tensor.shape), constant))
        return ref

    def _module(self, func: Any) -> str:
        """The module that called an operator; for a gradient, the one that called the operator it is of."""
        if self.modules or func is None:
            return self.modules[-1] if self.modules else ""
        return self._callers.get(_family(func), "")

    def _where(self, func: Any) -> str:
        module = self._module(func)
        return f"in {module}: " if module else ""

    def _refusal(self, func: Any) -> ExportError:
        why, hint = _REFUSED.get(
            func._schema.name,
            (f"{func} draws random numbers, which this exporter cannot offer", "remove the randomness"),
        )
        return ExportError(f"{self._where(func)}{why}", hint=hint)

    def _unsupported(self, func: Any) -> ExportError:
        where = self._where(func) or "in the loss or a gradient: "
        return ExportError(
            f"{where}operator {func} cannot be exported yet",
            hint="use another layer or activation, or add a rule for it in exporters/lowering",
        )


def record(
    function: Callable[[Tensors], Tensors],
    examples: tuple[Tensors, Tensors],
    batch_sizes: tuple[int, int],
    *,
    supported: Container[str],
    model: torch.nn.Module,
) -> Graph:
    """Trace a function of named tensors on examples of two batch sizes.

    Args:
        function: takes the inputs by name, gives the outputs by name; `model` may run inside.
        examples: the inputs for either run.
        batch_sizes: the batch size of either run.
        supported: names of the operators that may stand in the graph; others are decomposed if possible.
        model: its module names locate what cannot be exported.

    Raises:
        ExportError: an operator cannot be exported, or the computation depends on values or batch size.
    """
    runs = []
    for inputs in examples:
        recorder = _Recorder(supported, {id(buffer): name for name, buffer in model.named_buffers()})
        for name, tensor in inputs.items():
            recorder.add_input(name, tensor)
        # Fused kernels would be recorded as one operator; what they are made of is exported instead.
        with _located(recorder, model), _without_fused_kernels(), recorder:
            outputs = function(inputs)
        for name, tensor in outputs.items():
            recorder.add_output(name, tensor)
        runs.append(recorder.recording)
    return merge(runs[0], runs[1], batch_sizes)


@contextmanager
def _located(recorder: _Recorder, model: torch.nn.Module) -> Iterator[None]:
    """Tell the recorder which of the model's modules is running."""
    names = {id(module): name or "the model" for name, module in model.named_modules()}

    def enter(module: torch.nn.Module, _: Any) -> None:
        if id(module) in names:
            recorder.modules.append(f"{names[id(module)]} ({type(module).__name__})")

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        if id(module) in names:
            recorder.modules.pop()

    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    # Not torch.backends.mkldnn.flags: it sets more than that, and warns of it on some machines.
    set_mkldnn: Any = torch.backends.mkldnn.set_flags
    (mkldnn, *_) = set_mkldnn(_enabled=False, _fp32_precision=None)
    mha = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(mha)
        set_mkldnn(_enabled=mkldnn, _fp32_precision=None)


def _family(func: Any) -> str:
    """An operator's name without what marks it as in place or as a gradient."""
    name = str(func._schema.name).removesuffix("_data").removesuffix("_backward")
    return name.removesuffix("_forward").removesuffix("_")


def _functional(func: Any) -> Any:
    """The operator that computes what an in-place one writes, or None."""
    name = func._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if not name.endswith("_") or packet is None:
        return None
    names = [argument.name for argument in func._schema.arguments]
    twins = [getattr(packet, overload) for overload in packet.overloads()]
    twins = [twin for twin in twins if [argument.name for argument in twin._schema.arguments] == names]
    return next((twin for twin in twins if twin._overloadname == func._overloadname), next(iter(twins), None))


def _overlap(one: torch.Tensor, two: torch.Tensor) -> Literal["same", "partly", "apart"]:
    """How the memory of two tensors lies to each other."""
    if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr() or not one.numel():
        return "apart"
    places = [(tensor.shape, tensor.stride(), tensor.storage_offset()) for tensor in (one, two)]
    if places[0] == places[1]:
        return "same"
    elements = torch.arange(one.untyped_storage().nbytes() // one.element_size())
    seen = [elements.as_strided(*place).reshape(-1) for place in places]
    return "partly" if bool(torch.isin(*seen).any()) else "apart"
