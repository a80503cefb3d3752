"""Ten steps in one run of an ONNX Loop, against ten runs of one step: what a run's overhead is worth.

    python -m benchmarks.step_loop [MODEL ...]

Bundles hold single steps. The loop is built here from a bundle's training graph: state is carried, examples are
gathered from a stack of batches. Both must give the same bits. Least times of interleaved runs, one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_sdk.signing import new_private_key
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.graphs import initial_feeds, open_graph
from edge_sdk.training.manifest import GraphSpec
from exporters import export
from exporters.examples import digits, zoo
from exporters.spec import ModelSpec

MODELS = ("digits", "mlp", "lenet", "gpt")
BATCHES = (8, 32)
STEPS, ROUNDS = 10, 60

Arrays = dict[str, npt.NDArray[Any]]


def main() -> None:
    """Measure and print."""
    builders = {"digits": digits.build, **zoo.ZOO}
    print(f"{STEPS} steps in one run / one by one; ms a step one by one")
    for name in sys.argv[1:] or MODELS:
        artifact = _exported(builders[name]())
        for batch in BATCHES:
            ratio, ms = _ratio(artifact, batch)
            print(f"  {name:10}batch {batch:2}: {ratio:.2f} ({ms:.3f} ms)", flush=True)


def _exported(spec: ModelSpec) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        return export(
            spec.model,
            spec.loss,
            example_inputs=spec.example_inputs,
            example_target=spec.example_target,
            path=Path(folder, "model.edge"),
            signer=new_private_key(),
            learning_rate=spec.learning_rate,
        )


def _ratio(artifact: Artifact, batch: int) -> tuple[float, float]:
    """The loop's time over that of single steps, and the latter in milliseconds a step."""
    graph, spec = open_graph(artifact, "train"), artifact.manifest.graph("train")
    loop = _session(_looped(onnx.load_from_string(artifact.part(spec.part())), spec).SerializeToString())
    start = initial_feeds(graph, artifact.layout.unflatten(artifact.checkpoint()))
    start["learning_rate"] = np.array(1e-3, np.float32)
    stacks = _stacks(spec, artifact, batch)
    places = [([output.name for output in spec.outputs].index(pair.output), pair.input) for pair in spec.feedback]

    def single() -> list[npt.NDArray[Any]]:
        feeds = dict(start)
        for step in range(STEPS):
            feeds |= {name: stack[step] for name, stack in stacks.items()}
            outputs = graph.run(feeds)
            feeds |= {name: outputs[place] for place, name in places}
        return [feeds[pair.input] for pair in spec.feedback]

    def looped() -> list[npt.NDArray[Any]]:
        stacked = {f"all:{name}": stack for name, stack in stacks.items()}
        result: list[npt.NDArray[Any]] = loop.run(None, {**start, **stacked, "count": np.array(STEPS)})
        return result

    if not all(np.array_equal(one, other) for one, other in zip(single(), looped(), strict=True)):
        raise SystemExit("the loop computes other values")
    times = [(_time(single), _time(looped)) for _ in range(ROUNDS)]
    one, all_at_once = (min(column) for column in zip(*times, strict=True))
    return all_at_once / one, one / STEPS * 1e3


def _looped(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """A model that takes `count` steps: the training graph as the body of a Loop."""
    graph = model.graph
    kinds = {value.name: value for value in (*graph.input, *graph.output)}
    fields = [tensor.name for tensor in spec.inputs if tensor.role in ("input", "target")]
    state = [pair.input for pair in spec.feedback]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            *(helper.make_node("Gather", [f"all:{name}", "step"], [name]) for name in fields),
            helper.make_node("Identity", ["on"], ["still_on"]),
            *graph.node,
        ],
        "step",
        [info("step", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), *(kinds[name] for name in state)],
        [info("still_on", TensorProto.BOOL, []), *(kinds[pair.output] for pair in spec.feedback)],
        list(graph.initializer),
    )
    outer = [kinds[tensor.name] for tensor in spec.inputs if tensor.name not in fields]
    field_types = {name: kinds[name].type.tensor_type for name in fields}
    stacks = [info(f"all:{n}", kind.elem_type, [None] * (1 + len(kind.shape.dim))) for n, kind in field_types.items()]
    last = [onnx.ValueInfoProto(name=f"last:{name}", type=kinds[name].type) for name in state]
    loop = helper.make_node("Loop", ["count", "true", *state], [value.name for value in last], body=body)
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    inputs = [*outer, *stacks, info("count", TensorProto.INT64, [])]
    whole = helper.make_graph([loop], "steps", inputs, last, [true])
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


def _stacks(spec: GraphSpec, artifact: Artifact, batch: int) -> Arrays:
    """[STEPS, batch, ..] of every field of examples."""
    random = np.random.default_rng(0)
    stacks = {}
    for tensor in (*artifact.manifest.inputs, artifact.manifest.target):
        shape = [STEPS, *(dim or batch for dim in tensor.shape)]
        whole = "int" in tensor.dtype
        drawn = random.integers(artifact.manifest.classes or 2, size=shape) if whole else random.random(shape)
        stacks[tensor.name] = drawn.astype(tensor.dtype)
    return stacks


def _session(content: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _time(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
