"""A population's model as the app sees it: always the newest good one, whichever that is by now."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edge_sdk.inference.installed import InstalledModels
from edge_sdk.training.trainer import Rows


class Model:
    """Predicts with the newest good model; a new one takes over between two predictions. Threads may share it.

    Args:
        models: the population's, and the bundled one.
    """

    def __init__(self, models: InstalledModels) -> None:
        self._models = models

    @property
    def version(self) -> int:
        """The installed version that serves; 0 while it is the bundled one, or none."""
        current = self._models.current()
        return 0 if current is None else current.version

    @property
    def is_personal(self) -> bool:
        """Whether this device's own variant of that version serves, because it does better here.

        Raises:
            StoreError: it cannot be told.
        """
        return self._models.is_personal

    def predict(self, inputs: NDArray[Any] | Rows | None = None, /, **named: NDArray[Any]) -> NDArray[Any]:
        """The model's output for a batch, the first dimension of each input being the rows.

        Args:
            inputs: an array for a model of one input, else arrays by name.
            named: arrays by name, instead.

        Raises:
            ArtifactError: no model is installed yet and none is bundled, or neither can be used.
            TrainingError: the inputs are not what the model takes.
        """
        return self._models.predictor().predict(inputs, **named)
