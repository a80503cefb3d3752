"""What bundles say of memory: which results live together, in the order in which the runtime really makes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edge_sdk.errors import ArtifactError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.manifest import Feedback, GraphSpec, TensorSpec, check_manifest
from exporters.memory import _run_order, estimate_memory
from tests.integration.exported import exported, labels, small

WIDTH = 1000


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.recurrent(x)[0][:, -1]))


def _chain(*operators: str) -> onnx.ModelProto:
    """x -> t0 -> t1 .., all [batch, WIDTH]; the last is the output."""
    nodes = [
        helper.make_node(operator, ["x" if not index else f"t{index - 1}"], [f"t{index}"], name=f"n{index}")
        for index, operator in enumerate(operators)
    ]
    shape: list[str | int | None] = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _spec(*inputs: TensorSpec, feedback: tuple[Feedback, ...] = ()) -> GraphSpec:
    return GraphSpec("train", inputs, (), feedback)


def test_a_chain_holds_two_results_at_a_time() -> None:
    spec = _spec(TensorSpec("x", "input", "float32", (None, WIDTH)))
    none, two, four = (estimate_memory([(_chain(*["Exp"] * count), spec)]) for count in (1, 2, 4))
    assert two == four
    assert two.example_bytes - none.example_bytes == pytest.approx(1.4 * 4 * WIDTH, abs=1)
    # The examples themselves, and both results with what the runtime's arena wastes.
    assert two.example_bytes == pytest.approx((1 + 1.4 * 2) * 4 * WIDTH, abs=1)
    assert two.fixed_bytes == pytest.approx(4 << 20, abs=2)


def test_what_shares_memory_is_counted_once() -> None:
    spec = _spec(TensorSpec("x", "input", "float32", (None, WIDTH)))
    assert estimate_memory([(_chain("Exp", "Identity", "Exp"), spec)]) == estimate_memory(
        [(_chain("Exp", "Exp"), spec)]
    )


def test_state_is_held_twice() -> None:
    x = TensorSpec("x", "input", "float32", (None, WIDTH))
    state = TensorSpec("parameter:w", "parameter", "float32", (300,))
    without = estimate_memory([(_chain("Exp"), _spec(x))])
    held = estimate_memory([(_chain("Exp"), _spec(x, state, feedback=(Feedback("next:parameter:w", "parameter:w"),)))])
    assert held.fixed_bytes - without.fixed_bytes == 2 * 4 * 300
    assert held.least_bytes - without.least_bytes == 2 * 4 * 300


def test_nodes_run_in_the_order_that_is_foretold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact = exported(_Recurrent(), torch.randn(6, 4, 6), labels(6), optimizer="momentum")
    content = artifact.part("train.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = artifact.manifest.graph("train").inputs
    session.run(None, {tensor.name: np.zeros([dim or 3 for dim in tensor.shape], tensor.dtype) for tensor in inputs})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["name"].removesuffix("_kernel_time") for event in events if event["name"].endswith("_kernel_time")]
    nodes = list(onnx.load_from_string(content).graph.node)
    assert ran == [node.name for node in _run_order(nodes)]
    assert ran != [node.name for node in nodes]


def test_more_examples_and_more_state_need_more() -> None:
    def predicted(artifact: Artifact, batch: int) -> int:
        return artifact.manifest.predicted_bytes(batch)

    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8), labels(6)
    sgd, adam = (exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, y, optimizer=o) for o in ("sgd", "adam"))
    assert predicted(small(), 64) > predicted(small(), 8) >= predicted(small(), 1)
    assert predicted(adam, 8) > predicted(sgd, 8)
    assert predicted(sgd, 1) > sgd.layout.size_bytes


def test_both_halves_of_a_private_step_count() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.randn(6, 1, 8, 8), labels(6)
    plain, private = exported(model, x, y), exported(model, x, y, privacy="example")
    assert private.manifest.predicted_bytes(8) > plain.manifest.predicted_bytes(8)


def test_less_than_no_memory_makes_no_sense() -> None:
    manifest = small().manifest
    memory = replace(manifest.memory, example_bytes=-1)
    with pytest.raises(ArtifactError, match="less than no memory"):
        check_manifest(replace(manifest, memory=memory))
