"""`edge export`: make a signed bundle from a PyTorch model. Light to import; torch comes when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.cli import Subparsers
    from exporters.spec import ModelSpec

DEFAULT_MODEL = "exporters.examples.digits:build"


def add_export_verb(subparsers: Subparsers) -> None:
    """Add `edge export`."""
    parser = subparsers.add_parser(
        "export",
        help="make a signed training bundle from a PyTorch model",
        description="Trace a model's training step, certify it against float64 autograd, and write it with its "
        "evaluation and inference graphs as one signed bundle that trains without PyTorch.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODULE:FUNCTION",
        help="a function without arguments that gives an exporters.ModelSpec (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizer",
        default="sgd",
        metavar="NAME[:SETTING=VALUE,..]",
        help="sgd, momentum, nesterov, adam, adamw, adagrad or rmsprop, as in adam:beta2=0.99,max_gradient_norm=1 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--correction",
        action="store_true",
        help="let gradients be corrected in training, as a proximal term (FedProx), SCAFFOLD and FedDyn do",
    )
    parser.add_argument(
        "--trainable",
        action="append",
        metavar="PATTERN",
        help="train only parameters of such names, as in 'head.*' or '*.lora_?'; may be given several times",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=("torchscript", "litert", "executorch"),
        default=[],
        help="the graphs in this format too, beside ONNX; may be given several times",
    )
    parser.add_argument(
        "--compiled-batch",
        type=int,
        default=16,
        metavar="N",
        help="the batch size of litert, and the largest of executorch (default: %(default)s)",
    )
    parser.add_argument(
        "--gradient", action="store_true", help="add a graph of gradients, for algorithms that take their own step"
    )
    parser.add_argument(
        "--frozen",
        choices=("float32", "int8"),
        default="float32",
        help="how frozen matrices are stored: int8 is a quarter of the size (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-norm",
        choices=("train", "frozen"),
        default="train",
        help="frozen: batch norms use the statistics that they have (default: %(default)s)",
    )
    parser.add_argument(
        "--privacy",
        metavar="example[:SETTING=VALUE,..]",
        help="hide each example of a device by differentially private SGD, as in "
        "example:clip_norm=0.5,noise_multiplier=1.1,lot_size=64",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the bundle to write, as in digits.edge"
    )
    parser.add_argument(
        "--signer", type=Path, required=True, metavar="KEY", help="the model signer's private key, a PEM file"
    )
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    from exporters.exporter import export
    from exporters.rounding import rounding_effect

    spec = load_spec(arguments.model)
    artifact = export(
        spec.model,
        spec.loss,
        example_inputs=spec.example_inputs,
        example_target=spec.example_target,
        path=arguments.out,
        signer=arguments.signer,
        optimizer=arguments.optimizer,
        name=spec.name,
        version=spec.version,
        learning_rate=spec.learning_rate,
        batch_max=spec.batch_max,
        batch_norm=arguments.batch_norm,
        trainable=arguments.trainable,
        frozen=arguments.frozen,
        correction=arguments.correction,
        gradient=arguments.gradient,
        formats=("onnx", *arguments.format),
        compiled_batch=arguments.compiled_batch,
        privacy=arguments.privacy,
    )
    print(f"{arguments.out}: {spec.name} version {spec.version}, {artifact.layout.size:,} parameters")
    print(f"  {artifact.size_bytes:,} bytes, sha256 {artifact.sha256.hex()}")
    for known in artifact.manifest.formats:
        print(
            f"  {known.name} certified: {known.replay.steps} steps match float64 autograd, "
            f"worst at {known.replay.worst:.0%} of the tolerance"
        )
    if arguments.frozen == "int8":
        print(f"  int8: on the examples, {rounding_effect(spec.model, spec.example_inputs, artifact)}")
    return 0


def load_spec(target: str) -> ModelSpec:
    """Import MODULE:FUNCTION, from this folder too, and call it.

    Raises:
        ConfigError: there is no such module or function, or it gives something else.
    """
    from exporters.spec import ModelSpec

    module_name, _, function_name = target.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{target!r} does not name a function", hint="write it as my_models.digits:build")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module_name}: {error}",
            hint="run edge where the module lies, and install what it imports",
        ) from error
    # The module is the person's own code, which may raise anything; here it becomes one line.
    except Exception as error:
        raise _failed(module_name, error) from error
    build = getattr(module, function_name, None)
    if not callable(build):
        raise ConfigError(
            f"{module_name} has no function {function_name}",
            hint=f"define it there: def {function_name}() -> exporters.ModelSpec",
        )
    try:
        spec = build()
    except Exception as error:
        raise _failed(target, error) from error
    if not isinstance(spec, ModelSpec):
        raise ConfigError(
            f"{target} gives {type(spec).__name__}, not a ModelSpec", hint="return exporters.ModelSpec(...)"
        )
    return spec


def _failed(what: str, error: Exception) -> ConfigError:
    *_, last = traceback.extract_tb(error.__traceback__)
    # Neither the line here that called it, nor the import machinery's.
    ours = last.filename == __file__ or last.filename.startswith("<")
    where = "" if ours else f" at line {last.lineno} of {Path(last.filename).name}"
    return ConfigError(
        f"{what} fails{where}: {type(error).__name__}: {error}",
        hint="mend it, or set EDGE_DEBUG=1 in the environment to see how it came there",
    )
