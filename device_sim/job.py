"""The digits job: what the demo trains, with the numbers that were chosen for it.

The model has 1,370 parameters, as noise on the mean grows with the square root of their number and falls as one over
the devices. Each device takes a few full-batch steps on its handful of examples; the server takes decaying Adam steps
on the mean. How the numbers were found, and what other cohorts reach, is in docs/utility.md.
"""

from __future__ import annotations

import math
from pathlib import Path

from coordinator.config import Privacy, TaskConfig, Training
from coordinator.rounds.states import Pacing
from coordinator.service.tasks import encoding_for
from device_sim.fleet import EXAMPLES
from edge_sdk.protocol.messages import BlobRef, Digest

TASK = EXAMPLES
MODEL = "exporters.examples.digits:build"
DELTA = 1e-5
CLIP_NORM = 0.5
EPSILON = 8.0
TRAINING = Training(epochs=6, batch_size=32, max_steps=12, learning_rate=0.3)
SERVER_OPTIMIZER = "fedadam:learning_rate=0.15,beta1=0.5,beta2=0.9,epsilon=0.004,decay=0.97"
MIN_REPORTS_SHARE = 0.7


def min_reports(devices: int) -> int:
    """The fewest devices whose updates are ever released together."""
    return max(2, math.ceil(MIN_REPORTS_SHARE * devices))


def digits_task(
    *,
    devices: int,
    rounds: int,
    epsilon: float,
    dropout_share: float,
    dimension: int,
    signer_pem: str,
    evaluation: Path,
) -> TaskConfig:
    """The digits job as a task, paced for devices that are all awake on one machine.

    Args:
        devices: goal count.
        rounds: to commit.
        epsilon: device-level, over all rounds; infinity turns the noise off.
        dropout_share: dropouts inside a round that it survives.
        dimension: trainable parameters of the bundle.
        signer_pem: public key that the bundle is signed with.
        evaluation: .npz with the held-out x and y.
    """
    floor = min_reports(devices)
    privacy = Privacy(
        epsilon=epsilon,
        delta=DELTA,
        clip_norm=CLIP_NORM,
        # One more than the rounds, so that an abandoned round costs no device its last one.
        participation_cap=rounds + 1,
        corrupt_share=0.05,
        dropout_share=dropout_share,
    )
    # Many share few cores; and a small fleet, of which a few that vanished are a large part, need not wait as long.
    stage_s = 5.0 + devices / 20
    return TaskConfig(
        task=TASK,
        population=TASK,
        bundle=BlobRef(Digest(bytes(32)), 0),
        dimension=dimension,
        rounds=rounds,
        goal_count=devices,
        min_check_ins=floor,
        min_reports=floor,
        training=TRAINING,
        privacy=privacy,
        encoding=encoding_for(privacy, dimension=dimension, min_reports=floor, goal_count=devices),
        pacing=Pacing(
            selection_timeout_s=20.0,
            advertise_timeout_s=stage_s,
            share_timeout_s=stage_s,
            report_timeout_s=stage_s + 5.0,
            unmask_timeout_s=stage_s,
            quiet_s=0.4,
            backoff_s=0.5,
            backoff_limit_s=10.0,
        ),
        server_optimizer=SERVER_OPTIMIZER,
        signer=signer_pem,
        evaluation=str(evaluation.resolve()),
    )
