"""Run a function of torch tensors and write down every ATen operator it dispatches, backward pass included.

The function runs twice, on batches of two sizes. Whatever number differs between the runs depends on the
batch, and is kept as a symbol; whatever tensor differs in neither run nor input is a constant. So the trace
needs no symbolic shapes, and costs two steps. A function that does something else for another batch size, or
that looks at values to decide, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sdk.errors import ExportError
from exporters.aliases import View, overlap, views
from exporters.align import DTYPE_NAMES, Recording, Value, merge
from exporters.graph import Argument, Call, DType, Graph, Place, Ref, references
from exporters.places import Places
from exporters.refusals import REFUSED
from exporters.rewrites import Rewriting

Tensors = Mapping[str, torch.Tensor]

# Arguments that say where and how a tensor lies in memory; a graph has no such thing.
_PLACEMENT = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "copy"}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Writes down what is dispatched while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default torch wraps the method below so that it imports torch._dynamo: two seconds for nothing.
        return False

    def __init__(self, supported: Container[str], buffers: Mapping[int, str], places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self._supported = supported
        self._buffers = buffers
        self._places = places
        self._refs: dict[int, Ref] = {}
        self._captured: set[Ref] = set()
        self._views: dict[int, View] = {}
        self._stale: dict[int, str] = {}
        self._place = Place("", "")
        self._whole: Any = None
        """The operator that is being taken apart, where one is."""

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
        self._place = self._places.here()
        if func._schema.name in REFUSED or torch.Tag.nondeterministic_seeded in func.tags:
            raise self._refusal(func)
        if func is torch.ops.aten.native_batch_norm.default:
            return self._batch_norm(*args)
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
        twin, target, kwargs = _functional(func, args, dict(kwargs))
        if twin is None or not isinstance(target, torch.Tensor):
            raise self._unsupported(func)
        with self:
            result = twin(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:
            # It changes how the tensor is seen, not its values, so what shares them is not touched.
            func(*args, **kwargs)
            self._refs[id(target)] = self._ref(result)
            return target
        if result.dtype != target.dtype:
            with self:
                result = result.to(target.dtype)
        self._replace(func, target, result)
        return target

    def _batch_norm(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """Record batch norm with new running statistics as results; its schema hides that it changes them."""
        running, training, momentum = args[3:5], args[5], args[6]
        func = torch.ops.aten.native_batch_norm.default
        if not training or running[0] is None or momentum == 0:
            result = func(*args)
            self._write(func, args, {}, result)
            return tuple(result)
        func = torch.ops.aten._native_batch_norm_legit_functional.default
        result = func(*args)
        self._write(func, args, {}, result)
        for statistic, after in zip(running, result[3:], strict=True):
            self._replace(func, statistic, after)
        return tuple(result[:3])

    def _replace(self, func: Any, target: torch.Tensor, changed: torch.Tensor) -> None:
        """Change a tensor, and let what shares its memory follow."""
        self._ref(target)
        first, after = changed, {id(target): self._ref(changed)}
        owner = target
        while (view := self._views.get(id(owner))) is not None:
            with self:
                whole = view.put_back(changed)
            if whole is None:
                raise self._error(
                    f"{func} changes a part of a tensor in place, seen through {view.func}",
                    "write it without in-place changes, for example with torch.where or torch.cat",
                )
            owner, changed = view.base, whole
            self._ref(owner)
            after[id(owner)] = self._ref(changed)
        if self._refs[id(owner)] in self._captured:
            name = self._buffers.get(id(owner), "a tensor of its own")
            raise self._error(
                f"the model changes {name} during its forward pass",
                "keep state that changes in a float32 buffer (register_buffer)",
            )
        for value in self.recording.values:
            number = id(value.tensor)
            shared = "same" if number in after else overlap(value.tensor, target)
            if shared == "same":
                self._refs[number] = after.get(number, after[id(target)])
                self._stale.pop(number, None)
            elif shared == "partly":
                self._stale[number] = str(func)
        target.copy_(first)

    def _decompose(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that has no rule as the simpler ones it is made of, if torch knows them."""
        outer, self._whole = self._whole, self._whole or func
        decomposition = torch._decomp.decomposition_table.get(func)
        try:
            with self:
                if decomposition is not None:
                    return decomposition(*args, **kwargs)
                return func.decompose(*args, **kwargs)
        finally:
            self._whole = outer

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if func is torch.ops.aten.as_strided.default and not _whole(args[0]):
            raise self._error(
                "as_strided looks at memory that holds more than its tensor", "use indexing or reshape instead"
            )
        arguments = self._arguments(func, args, kwargs)
        sources = [ref for argument in arguments.values() for ref in references(argument)]
        constant = all(self.recording.values[ref.index].constant is not None for ref in sources)
        if not constant and self._looks_at_values(func, arguments):
            raise self._error(
                f"{self._whole or func} makes the computation depend on the values in the batch",
                "avoid .item(), nonzero(), boolean indexing and `if` on tensors: use torch.where or multiply by a mask",
            )
        if not isinstance(result, torch.Tensor | list | tuple):
            return
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        if not constant and str(func) not in self._supported:
            raise self._unsupported(func)
        outputs = tuple(
            self._new(tensor, tensor.clone() if constant else None) if isinstance(tensor, torch.Tensor) else None
            for tensor in results
        )
        self._views |= {id(tensor): view for tensor, view in views(func, args, results)}
        self.recording.calls.append(Call(str(func), arguments, outputs, self._place))

    def _looks_at_values(self, func: Any, arguments: Mapping[str, Argument]) -> bool:
        """Whether the shape of an operator's result, or a number it gives to Python, depends on values."""
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor):
            values = [self.recording.values[ref.index] for ref in references(arguments["indices"])]
            return any(value.tensor.dtype == torch.bool and value.constant is None for value in values)
        return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))

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
                raise self._error(
                    f"an operator takes {value!r}, which a graph cannot hold", "use real tensors and plain numbers"
                )

    def _ref(self, tensor: torch.Tensor) -> Ref:
        changed = self._stale.get(id(tensor))
        if changed is not None:
            view = self._views.get(id(tensor))
            if view is None:
                raise self._error(
                    f"{changed} changed a part of a tensor in place that is used again",
                    "write it without in-place changes, for example with torch.where or torch.cat",
                )
            with self:
                self._refs[id(tensor)] = self._ref(view.taken())
            del self._stale[id(tensor)]
        ref = self._refs.get(id(tensor))
        if ref is None:
            ref = self._new(tensor, tensor.detach().clone())
            self._captured.add(ref)
        return ref

    def _new(self, tensor: torch.Tensor, constant: torch.Tensor | None) -> Ref:
        if tensor.dtype not in DTYPE_NAMES:
            raise self._error(
                f"a tensor of the computation has dtype {tensor.dtype}",
                "compute with float32 and integers: no half(), no complex numbers, no torch.autocast",
            )
        ref = self._refs[id(tensor)] = Ref(len(self.recording.values))
        self.recording.values.append(Value(tensor, tuple(tensor.shape), constant))
        return ref

    def _error(self, problem: str, hint: str) -> ExportError:
        return ExportError(f"{self._place}{problem}", hint=hint)

    def _refusal(self, func: Any) -> ExportError:
        why, hint = REFUSED.get(
            func._schema.name,
            (
                "it draws random numbers, of which only dropout can be exported",
                "let the random numbers be an input of the model, or use dropout",
            ),
        )
        return self._error(f"{self._whole or func} cannot be exported: {why}", hint)

    def _unsupported(self, func: Any) -> ExportError:
        return self._error(
            f"operator {self._whole or func} cannot be exported yet",
            "use another layer or activation, or add a rule for it in exporters/lowering",
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
        places = Places(model)
        recorder = _Recorder(supported, {id(buffer): name for name, buffer in model.named_buffers()}, places)
        for name, tensor in inputs.items():
            recorder.add_input(name, tensor)
        # Fused kernels would be recorded as one operator; what they are made of is exported instead.
        with places.following(), without_fused_kernels(), Rewriting(), recorder:
            outputs = function(inputs)
        for name, tensor in outputs.items():
            recorder.add_output(name, tensor)
        runs.append(recorder.recording)
    return merge(runs[0], runs[1], batch_sizes)


@contextmanager
def without_fused_kernels() -> Iterator[None]:
    """Keep torch from kernels that do the work of several operators, or are chosen by size."""
    # Not torch.backends.mkldnn.flags: it sets more than that, and warns of it on some machines.
    set_mkldnn: Any = torch.backends.mkldnn.set_flags
    (mkldnn, *_) = set_mkldnn(_enabled=False, _fp32_precision=None)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        set_mkldnn(_enabled=mkldnn, _fp32_precision=None)


def _functional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The operator that computes what one writes to a tensor (or None), that tensor, and the other arguments."""
    name = func._schema.name.removeprefix("aten::")
    schema = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    if "out" in kwargs:
        target, schema = kwargs.pop("out"), [argument for argument in schema if argument[0] != "out"]
    else:
        target = args[0] if args else None
        name = name.removesuffix("_") if name.endswith("_") else ""
    packet = getattr(torch.ops.aten, name, None) if name else None
    twins = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    twins = [twin for twin in twins if [(a.name, str(a.type)) for a in twin._schema.arguments] == schema]
    return next((twin for twin in twins if not twin._schema.is_mutable), None), target, kwargs


def _whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements are all that its memory holds, in order."""
    size = tensor.untyped_storage().nbytes()
    return tensor.is_contiguous() and size == tensor.numel() * tensor.element_size()
