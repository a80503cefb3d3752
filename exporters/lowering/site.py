"""What a lowering rule sees of one ATen call: its arguments by name, with their types checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from edge_sdk.errors import ExportError
from exporters.graph import BatchSize, Call, DType, Ref, Shape, TensorType
from exporters.lowering.builder import Builder, Tensor

Result: TypeAlias = str | Tensor
"""A rule's output: a value of the call's full shape, or a `Tensor` that says what it broadcasts from."""

Rule: TypeAlias = Callable[["Site"], Result | tuple[Result | None, ...]]


class Site:
    """One call being lowered, and the builder to lower it with."""

    def __init__(
        self,
        builder: Builder,
        call: Call,
        values: Mapping[Ref, Tensor],
        types: Mapping[Ref, TensorType],
    ) -> None:
        self.b = builder
        self._call = call
        self._values = values
        self._types = types

    @property
    def operator(self) -> str:
        """The operator's full name."""
        return self._call.operator

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of all arguments of this overload."""
        return frozenset(self._call.arguments)

    def output(self, index: int = 0) -> TensorType:
        """The type of an output, which must be there."""
        ref = self._call.outputs[index]
        if ref is None:
            raise self.refuse("it lacks an output that is needed")
        return self._types[ref]

    def has(self, name: str) -> bool:
        """Whether an optional argument was given."""
        return self._call.arguments.get(name) is not None

    def shape(self, name: str) -> Shape:
        """The full shape of a tensor argument."""
        return self._types[self._ref(name)].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor argument."""
        return self._types[self._ref(name)].dtype

    def lazy(self, name: str) -> Tensor:
        """A tensor argument as it is held: it may have to be broadcast to its full shape still."""
        return self._values[self._ref(name)]

    def tensor(self, name: str) -> str:
        """A tensor argument in its full shape."""
        return self._full(self._ref(name))

    def tensors(self, name: str) -> tuple[str, ...]:
        """A list of tensors, each in its full shape."""
        return tuple(self._full(ref) for ref in self.refs(name))

    def refs(self, name: str) -> tuple[Ref, ...]:
        """A list of tensors, by number."""
        value = self._call.arguments[name]
        refs = tuple(item for item in value if isinstance(item, Ref)) if isinstance(value, tuple) else ()
        if not isinstance(value, tuple) or len(refs) != len(value):
            raise self.refuse(f"argument {name} is not a list of tensors")
        return refs

    def optional_refs(self, name: str) -> tuple[Ref | None, ...]:
        """A list of tensors, some of which may be left out, by number."""
        value = self._call.arguments[name]
        return tuple(item if isinstance(item, Ref) else None for item in value) if isinstance(value, tuple) else ()

    def type_of(self, ref: Ref) -> TensorType:
        """The full shape and dtype of a tensor."""
        return self._types[ref]

    def held(self, ref: Ref) -> Tensor:
        """A tensor as it is held: it may have to be broadcast to its full shape still."""
        return self._values[ref]

    def operand(self, name: str, dtype: str) -> Tensor:
        """A tensor or a number, converted to that dtype, as it is held."""
        value = self._call.arguments[name]
        match value:
            case Ref():
                held = self._values[value]
                return Tensor(self.b.cast(held.name, held.dtype, dtype), held.shape, dtype)
            case BatchSize():
                return Tensor(self.b.size(value, dtype), (), dtype)
            case bool() | int() | float():
                return Tensor(self.b.scalar(value, dtype), (), dtype)
            case _:
                raise self.refuse(f"argument {name} is neither a tensor nor a number")

    def number(self, name: str) -> float | None:
        """A number that is no tensor, else None."""
        value = self._call.arguments[name]
        return value if isinstance(value, int | float) else None

    def integer(self, name: str) -> int:
        """An integer that does not depend on the batch."""
        value = self._call.arguments[name]
        if type(value) is not int:
            raise self.refuse(f"argument {name} is not a fixed integer")
        return value

    def real(self, name: str) -> float:
        """A number that does not depend on the batch."""
        value = self._call.arguments[name]
        if not isinstance(value, int | float):
            raise self.refuse(f"argument {name} is not a fixed number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A truth value."""
        return self._call.arguments[name] is True

    def text(self, name: str) -> str:
        """A string."""
        value = self._call.arguments[name]
        if not isinstance(value, str):
            raise self.refuse(f"argument {name} is not a string")
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        """Integers that do not depend on the batch; none given is the empty tuple."""
        value = self._call.arguments[name]
        if value is None:
            return ()
        items = value if isinstance(value, tuple) else (value,)
        if not all(type(item) is int for item in items):
            raise self.refuse(f"argument {name} depends on the batch size")
        return tuple(item for item in items if isinstance(item, int))

    def dims(self, name: str) -> Shape:
        """Sizes, which may depend on the batch."""
        value = self._call.arguments[name]
        items = value if isinstance(value, tuple) else (value,)
        dims = tuple(item for item in items if type(item) is int or isinstance(item, BatchSize))
        if len(dims) != len(items):
            raise self.refuse(f"argument {name} is not a list of sizes")
        return dims

    def flags(self, name: str) -> tuple[bool, ...]:
        """Truth values."""
        value = self._call.arguments[name]
        return tuple(item is True for item in value) if isinstance(value, tuple) else ()

    def fixed(self, shape: Shape) -> tuple[int, ...]:
        """A shape that does not depend on the batch."""
        if any(isinstance(dim, BatchSize) for dim in shape):
            raise self.refuse("it mixes the batch dimension with others")
        return tuple(dim for dim in shape if isinstance(dim, int))

    def dtype_argument(self, name: str) -> str | None:
        """A dtype argument, if given."""
        value = self._call.arguments.get(name)
        return value.name if isinstance(value, DType) else None

    def refuse(self, why: str) -> ExportError:
        """The error for a call that its rule cannot lower."""
        return ExportError(
            f"{self._call.place}operator {self._call.operator} cannot be exported here: {why}",
            hint="use other settings for this layer, or extend its rule in exporters/lowering",
        )

    def _ref(self, name: str) -> Ref:
        value = self._call.arguments[name]
        if not isinstance(value, Ref):
            raise self.refuse(f"argument {name} is not a tensor")
        return value

    def _full(self, ref: Ref) -> str:
        return self.b.expand(self._values[ref], self._types[ref].shape)
