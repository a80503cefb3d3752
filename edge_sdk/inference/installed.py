"""Installed models: the newest good one serves, the one before it stays for a roll back.

An installation is files first, then one atomic replacement of `installed.json`; every load verifies what it reads and
falls back to the model before, so that a device that loses power at any point serves a good one. A model that cannot
predict is never installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import ArtifactError, StoreError, TrainingError
from edge_sdk.inference.personal import Comparison, PersonalModel
from edge_sdk.inference.predictor import Predictor
from edge_sdk.training.artifact import Artifact, parse_head, read_artifact
from edge_sdk.training.layout import Vector, encode_vector

log = logging.getLogger("edge.device")

_STATE_FILE, _HEAD_FILE = "installed.json", "head"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One installed model: its version, and the SHA-256 of its bundle and checkpoint in hexadecimal."""

    version: int
    bundle_sha256: str
    checkpoint_sha256: str


@dataclass(frozen=True, slots=True)
class _Tuned:
    base: InstalledModel
    comparison: Comparison


_Choice: TypeAlias = InstalledModel | _Tuned | Path


class InstalledModels:
    """A folder of installed models.

    Args:
        folder: created where missing.
        signer: the pinned public key that bundles must be signed with, checked again at every load.

    Attributes:
        bundled: a bundle shipped with the app, which serves until a model is installed; None for none.
        personal: the device's own variant, which serves instead of the global model that it was tuned from while it
            is better than it; None for none.
    """

    def __init__(self, folder: Path, *, signer: ec.EllipticCurvePublicKey) -> None:
        self.bundled: Path | None = None
        self.personal: PersonalModel | None = None
        self._folder = folder
        self._signer = signer
        self._serving: tuple[_Choice, Predictor] | None = None

    def install(self, artifact: Artifact, version: int, checkpoint: Vector) -> InstalledModel:
        """Serve this model from now on; the one that served stays for a roll back.

        Raises:
            ArtifactError: the bundle is not verified, or the model cannot predict.
            StoreError: it cannot be written; what served before still does.
        """
        predictor = _tried(artifact, checkpoint)
        data = encode_vector(checkpoint)
        model = InstalledModel(version, artifact.sha256.hex(), hashlib.sha256(data).hexdigest())
        current, _ = self._readable_state()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            bundle = self._bundle_path(model)
            bundle.mkdir(exist_ok=True)
            for name in (artifact.manifest.graph("infer").part(), *artifact.manifest.frozen_parts):
                self._put(bundle / artifact.manifest.part(name).sha256, artifact.part(name))
            self._put(bundle / _HEAD_FILE, artifact.head)
            self._put(self._checkpoint_path(model), data)
            if current != model:
                self._write_state(model, current)
        except OSError as error:
            raise self._failed(error) from error
        self._serving = (model, predictor)
        self._remove_unused(*self._state())
        return model

    def current(self) -> InstalledModel | None:
        """The model that serves, or None; also where a failing disk spoilt the record of it, see `require_whole`."""
        return self._readable_state()[0]

    def head(self, model: InstalledModel) -> bytes:
        """The head of an installed model's bundle, as it was fetched.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return (self._bundle_path(model) / _HEAD_FILE).read_bytes()
        except OSError as error:
            raise self._failed(error) from error

    def roll_back(self) -> InstalledModel:
        """Serve the model before the current one, which is forgotten.

        Raises:
            ArtifactError: there is none.
        """
        _, previous = self._state()
        if previous is None:
            raise ArtifactError("there is no earlier model to go back to")
        try:
            self._write_state(previous, None)
        except OSError as error:
            raise self._failed(error) from error
        self._serving = None
        return previous

    def predictor(self) -> Predictor:
        """The serving model's predictor; loaded anew when another model was installed since.

        Raises:
            ArtifactError, StoreError: no model is installed or bundled, or none of those that are can be loaded.
        """
        current, previous = self._readable_state() if self.bundled is not None else self._state()
        choices = [model for model in (self._tuned(current), current, previous, self.bundled) if model is not None]
        if not choices:
            raise ArtifactError("no model is installed yet", hint="take part in a task, or name a bundle to begin with")
        serving, first = self._serving, choices[0]
        if serving is None or serving[0] != first:
            serving = self._serving = (first, self._first_of(choices))
        return serving[1]

    @property
    def is_personal(self) -> bool:
        """Whether predictions come from this device's own variant.

        Raises:
            StoreError: it cannot be told.
        """
        return self._tuned(self._state()[0]) is not None

    def _tuned(self, current: InstalledModel | None) -> _Tuned | None:
        """The personal model, if it was tuned from the current global one and is better."""
        if self.personal is None or current is None:
            return None
        comparison = self.personal.comparison()
        if comparison is None or not comparison.wins or comparison.base_sha256 != current.checkpoint_sha256:
            return None
        return _Tuned(current, comparison)

    def _first_of(self, choices: Sequence[_Choice]) -> Predictor:
        """The first that can be loaded; the first one's error where none can."""
        first, *others = choices
        try:
            return self._load(first)
        except (ArtifactError, StoreError):
            for other in others:
                with suppress(ArtifactError, StoreError):
                    return self._load(other)
            raise

    def _load(self, model: _Choice) -> Predictor:
        match model:
            case Path():
                artifact = read_artifact(model, signer=self._signer)
                return Predictor(artifact, artifact.checkpoint())
            case InstalledModel():
                artifact = self._installed(model)
                return Predictor(artifact, artifact.layout.decode(self.checkpoint(model)))
            case _Tuned(base, comparison):
                artifact = self._installed(base)
                data = self.personal.checkpoint(comparison) if self.personal is not None else b""
                return Predictor(artifact, artifact.layout.decode(data))

    def _installed(self, model: InstalledModel) -> Artifact:
        """Those parts of a model's bundle that predictions need."""
        try:
            head, *parts = [path.read_bytes() for path in self._bundle_files(model)]
        except OSError as error:
            raise self._failed(error) from error
        return parse_head(head, signer=self._signer).with_parts(parts)

    def checkpoint(self, model: InstalledModel) -> bytes:
        """An installed model's parameters, float32 little-endian in layout order.

        Raises:
            StoreError, ArtifactError: they cannot be read, or were damaged.
        """
        try:
            data = self._checkpoint_path(model).read_bytes()
        except OSError as error:
            raise self._failed(error) from error
        if hashlib.sha256(data).hexdigest() != model.checkpoint_sha256:
            raise ArtifactError(
                f"the installed checkpoint of version {model.version} was damaged", hint="roll back, or install it anew"
            )
        return data

    def _state(self) -> tuple[InstalledModel | None, InstalledModel | None]:
        """(current, previous)."""
        path = self._folder / _STATE_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return _model(data["current"]), _model(data["previous"])
        except FileNotFoundError:
            return None, None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read: {error}", hint="the next model that is installed replaces it"
            ) from error

    def _readable_state(self) -> tuple[InstalledModel | None, InstalledModel | None]:
        """The same, for whoever can do without: nothing where a failing disk spoilt it."""
        try:
            return self._state()
        except StoreError as error:
            log.warning("%s", error)
            return None, None

    def require_whole(self, *, any_installed: bool = False) -> None:
        """See that what is installed can still be served.

        Args:
            any_installed: whether something was installed here, as far as the caller remembers.

        Raises:
            ArtifactError, StoreError: it was damaged, or is gone.
        """
        current, _ = self._state()
        if current is None and any_installed:
            raise StoreError(
                f"{self._folder / _STATE_FILE} is gone", hint="the next model that is installed replaces it"
            )
        if current is not None:
            self._installed(current)
            self.checkpoint(current)

    def _write_state(self, current: InstalledModel, previous: InstalledModel | None) -> None:
        data = {"current": asdict(current), "previous": None if previous is None else asdict(previous)}
        self._replace(self._folder / _STATE_FILE, json.dumps(data).encode())

    def _put(self, path: Path, data: bytes) -> None:
        # Files are named by their content; one that was damaged is written again.
        if not path.exists() or path.read_bytes() != data:
            self._replace(path, data)

    def _replace(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(data)
        part.replace(path)

    def _remove_unused(self, *kept: InstalledModel | None) -> None:
        names = {_STATE_FILE}
        for model in kept:
            if model is not None:
                names |= {self._bundle_path(model).name, self._checkpoint_path(model).name}
        for path in self._folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _bundle_path(self, model: InstalledModel) -> Path:
        """The folder of a bundle's head and of those of its parts that predictions need, named by their SHA-256."""
        return self._folder / model.bundle_sha256

    def _bundle_files(self, model: InstalledModel) -> list[Path]:
        """The head, then the parts."""
        folder = self._bundle_path(model)
        return [
            folder / _HEAD_FILE,
            *(path for path in folder.iterdir() if path.name != _HEAD_FILE and not path.suffix),
        ]

    def _checkpoint_path(self, model: InstalledModel) -> Path:
        return self._folder / f"{model.checkpoint_sha256}.checkpoint"

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot use the models in {self._folder}: {error.strerror or error}",
            hint="check the disk's free space and the folder's permissions",
        )


def _tried(artifact: Artifact, checkpoint: Vector) -> Predictor:
    """A predictor that has predicted: zeros in, finite values out."""
    try:
        predictor = Predictor(artifact, checkpoint)
        predictor.predict(
            {
                spec.name: np.zeros([1, *(dimension or 1 for dimension in spec.shape[1:])], spec.dtype)
                for spec in artifact.manifest.inputs
            }
        )
        return predictor
    except TrainingError as error:
        raise ArtifactError(f"the model cannot predict: {error}", hint="the last good model keeps serving") from error


def _model(data: Any) -> InstalledModel | None:
    return None if data is None else InstalledModel(**data)
