"""Steps of training on a bundle's graphs: which examples each one is of, and what is run for it.

A plain bundle's train graph is a whole step. One that is private for each example has no graph that sees both the
examples and the optimizer: its clip graph gives the sum of the examples' clipped gradients, and its train graph takes
what the device makes of that sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import PrivacyError, TrainingError
from edge_sdk.privacy.gaussian import noised
from edge_sdk.privacy.subsampled import poisson_sample
from edge_sdk.secagg.suite import Stream
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.example_privacy import sampled_steps, sampling_rate
from edge_sdk.training.graphs import OpenGraph, initial_feeds, open_graph, run_named
from edge_sdk.training.layout import Layout
from edge_sdk.training.manifest import ExamplePrivacy, Runtime
from edge_sdk.training.plan import SEED_LIMIT, TrainingPlan, batches

Arrays = Mapping[str, npt.NDArray[Any]]

CLIP_SLACK = 2.0**-10
"""Share by which rounding may leave a clipped gradient too long; noise is made for that much more."""


class TrainingSteps(Protocol):
    """Steps of one bundle."""

    @property
    def smallest(self) -> int:
        """The fewest examples that a step is of."""
        ...

    def state(self, tensors: Arrays) -> dict[str, npt.NDArray[Any]]:
        """What to feed besides examples and rate: `tensors`, what is frozen, slots and corrections at zero."""
        ...

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One step of the examples in `feeds`, without noise: its outputs by name. Certificates are made of these."""
        ...

    def feed_back(self, outputs: Arrays, feeds: dict[str, npt.NDArray[Any]]) -> None:
        """Let a step's outputs be the next one's inputs."""
        ...

    def samples(self, plan: TrainingPlan, examples: int, seed: bytes) -> Iterator[npt.NDArray[np.int64]]:
        """The rows that each step is of."""
        ...

    def take(
        self, feeds: dict[str, npt.NDArray[Any]], drawn: Iterable[Arrays], plan: TrainingPlan, seed: int
    ) -> float | None:
        """Take a step of the drawn rows: put the new state into `feeds`, and give the rows' mean loss.

        They come in parts of at most the plan's batch size. None where so few are left that no step can be taken.

        Raises:
            TrainingError: the runtime failed, or what it found cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ShuffledSteps:
    """Batches of shuffled examples, for each a run of the train graph. `smallest` is the least batch it takes."""

    graph: OpenGraph
    smallest: int = 1

    def state(self, tensors: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `TrainingSteps`."""
        return initial_feeds(self.graph, tensors)

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `TrainingSteps`."""
        return run_named(self.graph, feeds)

    def feed_back(self, outputs: Arrays, feeds: dict[str, npt.NDArray[Any]]) -> None:
        """See `TrainingSteps`."""
        feeds.update({pair.input: outputs[pair.output] for pair in self.graph.spec.feedback})

    def samples(self, plan: TrainingPlan, examples: int, seed: bytes) -> Iterator[npt.NDArray[np.int64]]:
        """A fresh shuffle every epoch; see `batches`."""
        return batches(plan, examples, seed, self.smallest)

    def take(
        self, feeds: dict[str, npt.NDArray[Any]], drawn: Iterable[Arrays], plan: TrainingPlan, seed: int
    ) -> float | None:
        """See `TrainingSteps`; a step has one part."""
        (rows,) = drawn
        if _count(rows) < self.smallest:
            return None
        outputs = self.run({**feeds, **rows, "seed": np.array(seed, np.int64)})
        self.feed_back(outputs, feeds)
        return float(outputs["loss"])


@dataclass(frozen=True, slots=True, eq=False)
class SampledSteps:
    """Poisson samples of examples, whose clipped gradients are summed and noised before the optimizer sees them.

    Attributes:
        clip: the graph that clips and sums.
        graph: the train graph, which takes gradients.
        layout: of what is learned.
        privacy: what the bundle promises.
        filled: to how many rows runs of the clip graph are filled up, with rows that do not count.
        entropy: gives that many secret random bytes.
    """

    clip: OpenGraph
    graph: OpenGraph
    layout: Layout
    privacy: ExamplePrivacy
    filled: int = 1
    entropy: Callable[[int], bytes] = secrets.token_bytes

    @property
    def smallest(self) -> int:
        """See `TrainingSteps`."""
        return 1

    def state(self, tensors: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `TrainingSteps`; the clip norm is that of the bundle."""
        clip_norm = np.array(self.privacy.clip_norm, np.float32)
        return {**initial_feeds(self.clip, tensors), **initial_feeds(self.graph, tensors), "clip_norm": clip_norm}

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `TrainingSteps`; `feeds` has weights of the examples too."""
        outputs = run_named(self.clip, feeds)
        return {**self._moved(feeds, self._flat(outputs)), "loss": outputs["loss"]}

    def feed_back(self, outputs: Arrays, feeds: dict[str, npt.NDArray[Any]]) -> None:
        """See `TrainingSteps`."""
        feeds.update({pair.input: outputs[pair.output] for pair in self.graph.spec.feedback})

    def samples(self, plan: TrainingPlan, examples: int, seed: bytes) -> Iterator[npt.NDArray[np.int64]]:
        """Poisson samples, from secret randomness: `seed` decides nothing here."""
        stream = Stream(self.entropy(32))
        for _ in range(sampled_steps(self.privacy, plan, examples)):
            yield poisson_sample(examples, sampling_rate(self.privacy, examples), stream)

    def take(
        self, feeds: dict[str, npt.NDArray[Any]], drawn: Iterable[Arrays], plan: TrainingPlan, seed: int
    ) -> float | None:
        """See `TrainingSteps`; the parts are run one by one, and there may be no rows at all."""
        total, loss, count = np.zeros(self.layout.size), 0.0, 0
        for place, rows in enumerate(drawn):
            size = _count(rows)
            if not size:
                continue
            mask_seed = np.array((seed + place * plan.batch_size) % SEED_LIMIT, np.int64)
            held = max(size, self.filled)
            filled = {name: np.resize(array, (held, *array.shape[1:])) for name, array in rows.items()}
            weight = np.asarray(np.arange(held) < size, np.float32)
            outputs = run_named(self.clip, {**feeds, **filled, "weight": weight, "seed": mask_seed})
            found = self._flat(outputs)
            self._check_clipped(found, size)
            total += found
            loss += float(outputs["loss"]) * size
            count += size
        try:
            private = noised(total, self._sensitivity, self.privacy.noise_multiplier, Stream(self.entropy(32)))
        except PrivacyError as error:
            raise TrainingError(f"the gradients cannot be given noise: {error}", hint=error.hint) from error
        self.feed_back(self._moved(feeds, private), feeds)
        return loss / max(count, 1)

    @property
    def _sensitivity(self) -> float:
        return self.privacy.clip_norm * (1 + CLIP_SLACK)

    def _check_clipped(self, total: npt.NDArray[np.float64], rows: int) -> None:
        """Refuse a sum that clipped gradients cannot have. Of a single row, this shows that it was clipped."""
        length = float(np.linalg.norm(total))
        # Also false for NaN.
        if not length <= rows * self._sensitivity:
            raise TrainingError(
                f"the sum of {rows} clipped gradients is {length:.3g} long, which is no number or more than {rows} "
                f"times {self.privacy.clip_norm:g}",
                hint="lower the learning rate; if that does not help, the bundle does not do what it promises",
            )

    def _flat(self, outputs: Arrays) -> npt.NDArray[np.float64]:
        parts = [outputs[f"gradient:{entry.name}"].reshape(-1) for entry in self.layout.entries]
        return np.concatenate(parts).astype(np.float64)

    def _moved(self, feeds: Arrays, total: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[Any]]:
        """Let the optimizer step with a sum of gradients, of which it gets the mean over the lot."""
        mean = self.layout.unflatten((total / self.privacy.lot_size).astype(np.float32))
        gradients = {f"gradient:{entry.name}": mean[entry.tensor] for entry in self.layout.entries}
        return run_named(self.graph, {**feeds, **gradients})


def _count(rows: Arrays) -> int:
    return len(next(iter(rows.values())))


def open_steps(
    artifact: Artifact,
    runtime: Runtime = "onnx",
    entropy: Callable[[int], bytes] = secrets.token_bytes,
    threads: int = 1,
) -> TrainingSteps:
    """Open the graphs of a bundle that training needs.

    Raises:
        ArtifactError: the signature was not checked, the runtime is too old, or it cannot load a graph.
    """
    manifest, graph = artifact.manifest, open_graph(artifact, "train", runtime, threads)
    smallest = manifest.format(runtime).batch.minimum
    if manifest.privacy is None:
        return ShuffledSteps(graph, smallest)
    clip = open_graph(artifact, "clip", runtime, threads)
    return SampledSteps(clip, graph, manifest.layout, manifest.privacy, smallest, entropy)
