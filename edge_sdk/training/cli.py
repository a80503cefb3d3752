"""`edge inspect|verify|bench`: what a bundle holds, whether this machine computes it right, and how fast.

Light to import.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.cli import Subparsers
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.manifest import ExamplePrivacy, FormatSpec, Runtime, TensorSpec


# What a private bundle's epsilon is shown for: examples, in lots, and passes over them.
_LOTS = 20
_EPOCHS = (1, 10, 100)


def add_inspect_verb(subparsers: Subparsers) -> None:
    """Add `edge inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a bundle's contents, signature and parity on this runtime",
        description="Show what a bundle holds. With the signer's public key its signature is checked, and its "
        "parity vector is replayed on this machine; without, nothing in it is run.",
    )
    _add_bundle(parser)
    parser.add_argument("--signer", type=Path, metavar="KEY", help="the model signer's public key, a PEM file")
    parser.set_defaults(handler=_inspect)


def add_verify_verb(subparsers: Subparsers) -> None:
    """Add `edge verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="check a bundle: signature, hashes, and its parity vector on this runtime",
        description="Exit code 0 if the bundle is the signer's, whole, and computed right on this machine; 1 if this "
        "machine computes other values; 2 if the bundle is not to be trusted.",
    )
    _add_bundle(parser)
    parser.add_argument("--signer", type=Path, required=True, metavar="KEY", help="the signer's public key, a PEM file")
    parser.set_defaults(handler=_verify)


def add_bench_verb(subparsers: Subparsers) -> None:
    """Add `edge bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a bundle's training step on this device",
        description="Train on the bundle's own parity examples, repeated, and print medians.",
    )
    _add_bundle(parser)
    parser.add_argument("--signer", type=Path, required=True, metavar="KEY", help="the signer's public key, a PEM file")
    parser.add_argument(
        "--batch", type=int, action="append", metavar="N", help="examples a step; repeat it (default: 1, 8 and 32)"
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="in each run (default: %(default)s)")
    parser.set_defaults(handler=_bench)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="a .edge file")
    parser.add_argument(
        "--runtime",
        default="onnx",
        metavar="NAME",
        help="what runs its graphs: onnx, torchscript, litert or executorch (default: %(default)s)",
    )


def _verify(arguments: argparse.Namespace) -> int:
    from edge_sdk.credentials import load_public_key
    from edge_sdk.training.artifact import read_artifact

    artifact = read_artifact(arguments.bundle, signer=load_public_key(arguments.signer))
    print(
        f"{arguments.bundle}: signed by key {artifact.signer_key_id.hex()[:16]}, all {len(artifact.parts)} parts whole"
    )
    return _print_parity(artifact, arguments.runtime)


def _bench(arguments: argparse.Namespace) -> int:
    from edge_sdk.credentials import load_public_key
    from edge_sdk.training.artifact import read_artifact
    from edge_sdk.training.graphs import runtime_name
    from edge_sdk.training.measure import measure

    artifact = read_artifact(arguments.bundle, signer=load_public_key(arguments.signer))
    bounds = artifact.manifest.format(arguments.runtime).batch
    usual = {min(max(size, bounds.minimum), bounds.maximum) for size in (1, 8, 32)}
    batches = arguments.batch or sorted(usual)
    if arguments.steps < 1 or not all(bounds.minimum <= batch <= bounds.maximum for batch in batches):
        raise ConfigError(
            f"{arguments.steps} steps of batches {batches} cannot be measured",
            hint=f"choose one step or more, and batches of {bounds.minimum} to {bounds.maximum}",
        )
    found = measure(artifact, batches, arguments.steps, arguments.runtime)
    name = artifact.manifest.name
    print(f"{name}: ready in {found.ready_s:.2f} s on {runtime_name(arguments.runtime)}")
    print("  batch   ms a step   examples/s")
    for step in found.steps:
        print(f"  {step.batch:>5} {step.step_ms:>11.2f} {step.examples_per_s:>12,.0f}")
    print(f"  the whole process held at most {found.peak_bytes / 1e6:,.0f} MB")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from edge_sdk.credentials import load_public_key
    from edge_sdk.training.artifact import inspect_artifact, read_artifact

    if arguments.signer is None:
        artifact = inspect_artifact(arguments.bundle)
    else:
        artifact = read_artifact(arguments.bundle, signer=load_public_key(arguments.signer))
    print(f"{arguments.bundle}: {artifact.size_bytes:,} bytes, sha256 {artifact.sha256.hex()}")
    for label, value in describe(artifact):
        print(f"  {label:<11} {_printable(value)}")
    if not artifact.verified:
        print("  parity      not replayed: nothing runs from a bundle whose signature was not checked")
        return 0
    return _print_parity(artifact, arguments.runtime)


def _print_parity(artifact: Artifact, runtime: Runtime) -> int:
    from edge_sdk.training.graphs import runtime_name
    from edge_sdk.training.parity import replay_parity

    report = replay_parity(artifact, runtime)
    verdict = "ok" if report.ok else "FAILED: this runtime computes other values, do not train on it"
    print(
        f"  parity      {verdict}; {report.steps} steps on {runtime_name(runtime)}, "
        f"worst at {report.worst:.1%} of the tolerance"
    )
    return 0 if report.ok else 1


def describe(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """What a bundle says of itself, as labelled lines."""
    manifest = artifact.manifest
    signer = f"key {artifact.signer_key_id.hex()[:16]}"
    yield "signature", f"valid, by {signer}" if artifact.verified else f"NOT CHECKED (says {signer}); pass --signer"
    yield "model", f"{manifest.name} version {manifest.version}"
    for spec in manifest.inputs:
        yield "input", f"{spec.name}: {_tensor(spec)}"
    classes = "" if manifest.classes is None else f", {manifest.classes} classes"
    yield "target", f"{manifest.target.name}: {_tensor(manifest.target)}{classes}"
    yield "output", _tensor(manifest.output)
    yield "loss", f"{manifest.loss.name}, {manifest.loss.reduction} over the batch"
    optimizer = manifest.optimizer
    constants = "".join(f", {item.name} {item.value:g}" for item in optimizer.hyperparameters)
    yield "optimizer", f"{optimizer.kind}, learning rate {optimizer.default_learning_rate:g}{constants}"
    if manifest.graph("train").takes("proximal"):
        yield "corrections", "taken: a proximal term, or any vector added to the gradients"
    if manifest.privacy is not None:
        yield from _describe_privacy(manifest.privacy)
    yield "batch", f"{manifest.batch.minimum} to {manifest.batch.maximum}"
    frozen = sum(math.prod(dim or 0 for dim in spec.shape) for spec in manifest.frozen if "scale:" not in spec.name)
    types = ", ".join(sorted({spec.dtype for spec in manifest.frozen}))
    yield "parameters", f"{manifest.layout.size:,} trained, {frozen:,} frozen" + (f" ({types})" if types else "")
    for offset, entry in zip(manifest.layout.offsets, manifest.layout.entries, strict=True):
        yield "", f"{offset:>9,}  {entry.name} {list(entry.shape)}"
    yield "parts", ", ".join(f"{part.name} {part.size_bytes:,}" for part in manifest.parts) + " bytes"
    memory = manifest.memory
    yield (
        "memory",
        f"about {max(memory.fixed_bytes, memory.least_bytes) / 1e6:.1f} MB to train on ONNX Runtime, and "
        f"{memory.example_bytes / 1e3:,.0f} kB for each example of a batch",
    )
    yield "made with", ", ".join(f"{tool.name} {tool.version}" for tool in manifest.tools)
    for known in manifest.formats:
        yield from _describe_format(known)


def _describe_format(known: FormatSpec) -> Iterator[tuple[str, str]]:
    from edge_sdk.training.backends import BACKENDS

    opset = "" if known.opset is None else f", opset {known.opset}"
    sizes = f"batches of {known.batch.minimum} to {known.batch.maximum}"
    yield known.name, f"requires {BACKENDS[known.name].title} {known.oldest}{opset}; {sizes}"
    replay = known.replay
    yield "certified", f"{replay.steps} steps against float64 autograd, worst at {replay.worst:.1%} of the tolerance"
    yield "operators", ", ".join(known.operators)


def _describe_privacy(privacy: ExamplePrivacy) -> Iterator[tuple[str, str]]:
    from edge_sdk.training.example_privacy import example_epsilon, steps_an_epoch

    yield (
        "privacy",
        f"each example: gradients clipped to {privacy.clip_norm:g}, noise multiplier {privacy.noise_multiplier:g}, "
        f"Poisson samples of {privacy.lot_size:,} on average",
    )
    examples = _LOTS * privacy.lot_size
    steps, delta = steps_an_epoch(privacy, examples), 1 / (10 * examples)
    spent = [(epochs, example_epsilon(privacy, examples, epochs * steps, delta)) for epochs in _EPOCHS]
    shown = ", ".join(f"{epsilon:.2f} for {epochs}" for epochs, epsilon in spent)
    yield "epsilon", f"{shown} epochs in all, with {examples:,} examples on the device and delta {delta:.1g}"


def _printable(text: str) -> str:
    # Names in a bundle that nobody vouches for must not steer the terminal.
    return "".join(character if character.isprintable() else "?" for character in text)


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join('batch' if dim is None else str(dim) for dim in spec.shape)}]"
