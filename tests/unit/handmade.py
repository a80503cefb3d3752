"""A bundle made by hand, without PyTorch and without a graph that runs: for tests of the container."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.signing import key_id, new_private_key, sign_raw
from edge_sdk.training.artifact import pack_bundle
from edge_sdk.training.layout import Layout, LayoutEntry, encode_vector
from edge_sdk.training.manifest import (
    BatchRange,
    Feedback,
    FormatSpec,
    GraphKind,
    GraphSpec,
    LossSpec,
    Manifest,
    Memory,
    OptimizerSpec,
    ParitySpec,
    ParityStep,
    Replay,
    TensorSpec,
    Tool,
)

SIGNER = new_private_key()
LAYOUT = Layout((LayoutEntry("fc.weight", (2, 3)), LayoutEntry("fc.bias", (2,))))

_X = TensorSpec("x", "input", "float32", (None, 3))
_Y = TensorSpec("y", "target", "int64", (None,))
_LOSS = TensorSpec("loss", "loss", "float32", ())
_OUTPUT = TensorSpec("output", "output", "float32", (None, 2))
_RATE = TensorSpec("learning_rate", "learning_rate", "float32", ())


def _parameters(prefix: str = "") -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(f"{prefix}parameter:{entry.name}", "parameter", "float32", entry.shape) for entry in LAYOUT.entries
    )


def _graph(kind: GraphKind) -> GraphSpec:
    inputs: tuple[TensorSpec, ...] = (*_parameters(), _X)
    outputs: tuple[TensorSpec, ...] = (_OUTPUT,)
    feedback: tuple[Feedback, ...] = ()
    if kind == "evaluate":
        inputs, outputs = (*inputs, _Y), (_LOSS, _OUTPUT)
    if kind == "train":
        inputs, outputs = (*inputs, _Y, _RATE), (*_parameters("next:"), _LOSS)
        feedback = tuple(Feedback(f"next:{spec.name}", spec.name) for spec in _parameters())
    return GraphSpec(kind, inputs, outputs, feedback)


def manifest() -> Manifest:
    """A manifest that makes sense; its parts are filled in when it is packed."""
    return Manifest(
        name="toy",
        version="1",
        layout=LAYOUT,
        frozen=(),
        inputs=(_X,),
        target=_Y,
        output=_OUTPUT,
        classes=2,
        ignored_label=-100,
        loss=LossSpec("cross_entropy", "mean"),
        optimizer=OptimizerSpec("sgd", (), (), 0.1),
        privacy=None,
        batch=BatchRange(1, 64),
        graphs=(_graph("train"), _graph("evaluate"), _graph("infer")),
        memory=Memory(2048, 1024, 512),
        formats=(FormatSpec("onnx", "1.19.2", 18, 8, ("Gemm",), BatchRange(1, 64), Replay(20, (4, 1), 5e-5, 0.1)),),
        tools=(Tool("hand", "1"),),
        parity=ParitySpec(3, (ParityStep(2, 0.1, 0, 0.7, 1e-4),)),
        parts=(),
    )


def parts() -> dict[str, bytes]:
    """Parts of the sizes that `manifest` says."""
    sampled = -(-LAYOUT.size // 3)
    return {
        "checkpoint": encode_vector(np.arange(LAYOUT.size, dtype=np.float32)),
        "train.onnx": b"train graph",
        "evaluate.onnx": b"evaluate graph" * 7,
        "infer.onnx": b"",
        "parity": bytes(2 * 3 * 4 + 2 * 8 + 2 * 4 * sampled),
    }


def bundle(
    changed: Manifest | None = None,
    *,
    key: ec.EllipticCurvePrivateKey = SIGNER,
    replaced: dict[str, bytes] | None = None,
) -> bytes:
    """A signed bundle, of another manifest or with other parts if given."""
    return pack_bundle(
        changed or manifest(),
        parts() | (replaced or {}),
        signer_key_id=key_id(key.public_key()),
        sign=lambda message: sign_raw(key, message),
    )
