"""What an export, a device and `edge verify` say where a format's runtime or converter is not installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from edge_sdk.errors import ArtifactError, ExportError
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.training.backends import BACKENDS
from edge_sdk.training.bundle_trainer import BundleTrainer
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.manifest import FormatSpec, Manifest, Runtime
from tests.integration.exported import SIGNER, exported, labels, repacked, small, small_net


def _not_installed() -> NoReturn:
    raise PackageNotFoundError("the package")


@pytest.mark.parametrize(
    ("runtime", "module", "message", "extra"),
    [
        ("litert", "litert_torch", "LiteRT's converter is not installed", "export-litert"),
        ("executorch", "executorch.exir", "ExecuTorch is not installed", "executorch"),
    ],
)
def test_an_export_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, module: str, message: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExportError, match=message) as caught:
        exported(small_net(), torch.randn(8, 1, 8, 8), labels(8), formats=("onnx", runtime))
    assert extra in str(caught.value.hint)


@pytest.mark.parametrize(("runtime", "package"), [("litert", "ai-edge-litert"), ("executorch", "executorch")])
def test_a_device_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: Runtime, package: str
) -> None:
    monkeypatch.setitem(BACKENDS, runtime, replace(BACKENDS[runtime], version=_not_installed))
    key = SIGNER.public_key()
    with pytest.raises(ArtifactError, match=f"the runtime {runtime} needs {package}, which is not installed"):
        LocalLearner(key, None, InstalledModels(tmp_path, signer=key), runtime=runtime)


def test_a_runtime_older_than_the_bundle_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_litert(manifest: Manifest) -> Manifest:
        litert: FormatSpec = replace(manifest.formats[0], name="litert", oldest="2.3.0", opset=None, ir_version=None)
        return replace(manifest, formats=(*manifest.formats, litert))

    graphs = {graph.part("litert"): b"a graph" for graph in small().manifest.graphs}
    artifact = repacked(with_litert, small(), **graphs)
    monkeypatch.setitem(BACKENDS, "litert", replace(BACKENDS["litert"], version=lambda: "2.2.9"))
    with pytest.raises(ArtifactError, match=r"the bundle needs LiteRT 2\.3\.0, this device has 2\.2\.9"):
        BundleTrainer(artifact, "litert")
