"""The options that say what a run computes and promises, and the configuration they make.

`edge run create` and `edge privacy plan` take the same ones. Light to import.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.config import TaskConfig

_DEFAULT = "(default: %(default)s)"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--rounds", type=int, metavar="N", help="how many to commit (default: 10, for analytics 1)")
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="selection fills to this many")
    parser.add_argument(
        "--min-reports", type=int, metavar="N", help="fewest devices in a released sum (default: 70%% of --devices)"
    )
    parser.add_argument("--epsilon", default="10", help=f"device-level budget, or 'off' for no noise {_DEFAULT}")
    parser.add_argument("--delta", type=float, default=1e-5, help=f"at which epsilon is stated {_DEFAULT}")
    parser.add_argument(
        "--mechanism",
        choices=("skellam", "discrete_gaussian"),
        default="skellam",
        help=f"the noise that devices add {_DEFAULT}",
    )
    parser.add_argument(
        "--bits", type=int, metavar="B", help="of a coordinate (default: the fewest that cost at most 2%% more noise)"
    )
    parser.add_argument(
        "--local-noise",
        action="store_true",
        help="each device adds noise enough for epsilon alone, relying on no other: local differential privacy",
    )
    parser.add_argument("--clip-norm", type=float, default=1.0, metavar="C", help=f"largest update {_DEFAULT}")
    parser.add_argument(
        "--adaptive-clipping",
        type=float,
        metavar="Q",
        help="let the clip norm move, from --clip-norm on, to where this share of the updates is within it",
    )
    parser.add_argument(
        "--participation-cap",
        type=int,
        metavar="N",
        help="rounds one device may join (default: rounds, over groups, + 1)",
    )
    parser.add_argument(
        "--corrupt-share", type=float, default=0.05, metavar="S", help=f"colluders to protect against {_DEFAULT}"
    )
    parser.add_argument(
        "--dropout-share", type=float, default=0.2, metavar="S", help=f"dropouts that a round survives {_DEFAULT}"
    )
    parser.add_argument(
        "--consistency",
        choices=("auto", "threshold", "quorum"),
        default="auto",
        help="what keeps the survivors of a round one set: more neighbours for each device, or signatures of a "
        f"committee in a stage more {_DEFAULT}",
    )
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help=f"on each device, in a round {_DEFAULT}")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help=f"examples a step {_DEFAULT}")
    parser.add_argument("--max-steps", type=int, default=100, metavar="N", help=f"no more steps than these {_DEFAULT}")
    parser.add_argument("--learning-rate", type=float, default=0.1, metavar="R", help=f"of the devices {_DEFAULT}")
    parser.add_argument(
        "--proximal",
        type=float,
        default=0.0,
        metavar="MU",
        help=f"hold local training to the checkpoint, as in FedProx; the bundle must take corrections {_DEFAULT}",
    )
    parser.add_argument(
        "--server-optimizer",
        default="fedavg:learning_rate=1",
        metavar="SPEC",
        help=f"fedavg, fedavgm, fedadam or fedyogi, and its options; before it a robust rule over rounds with "
        f"different devices, as in 'median:groups=5>fedavg' {_DEFAULT}",
    )
    parser.add_argument(
        "--stage-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help=f"seconds for each stage but selection and reporting {_DEFAULT}",
    )
    parser.add_argument(
        "--selection-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help=f"seconds for devices to offer themselves; a round that fills up begins at once {_DEFAULT}",
    )
    parser.add_argument(
        "--report-timeout", type=float, default=1200.0, metavar="S", help=f"seconds to train and report {_DEFAULT}"
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=2.0,
        metavar="S",
        help=f"seconds without news that close a nearly full stage {_DEFAULT}",
    )


def epsilon_of_option(text: str) -> float:
    """The budget that `--epsilon` names; infinity for 'off', which turns the noise off.

    Raises:
        ConfigError: it is neither 'off' nor a positive number.
    """
    if text == "off":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Infinity is asked for by its name only, so that nobody turns the noise off by mistake.
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--epsilon {text} is no budget", hint="give a positive number, or 'off' for no noise")
    return value


def config_of_options(
    arguments: argparse.Namespace,
    *,
    task: str,
    population: str,
    dimension: int,
    signer: str = "",
    evaluation: str = "",
) -> TaskConfig:
    """The configuration that the options ask for, with the noise that its promise needs; its bundle is not set.

    Args:
        arguments: with all options of `add_run_options`.
        task, population: names.
        dimension: trained parameters.
        signer: the bundle signer's public key, PEM.
        evaluation: an .npz of held-out examples, or empty.

    Raises:
        ConfigError: options that do not go together.
        PrivacyError: no noise keeps the promise.
    """
    from coordinator.aggregation.server_optimizers import server_optimizer
    from coordinator.config import Privacy, TaskConfig, Training
    from coordinator.privacy.clipping import AdaptiveClipping
    from coordinator.rounds.agreement import cheapest
    from coordinator.rounds.states import Pacing
    from coordinator.service.tasks import encoding_for
    from edge_sdk.privacy.noise import Mechanism
    from edge_sdk.protocol.messages import BlobRef, Consistency, Digest

    devices, rounds = arguments.devices, 10 if arguments.rounds is None else arguments.rounds
    min_reports = max(2, math.ceil(0.7 * devices)) if arguments.min_reports is None else arguments.min_reports
    # A device is in at most one round of a group whose means are combined.
    groups = server_optimizer(arguments.server_optimizer).groups
    cap = rounds // groups + 1 if arguments.participation_cap is None else arguments.participation_cap
    if devices < 2 or rounds < 1 or cap < 1:
        raise ConfigError(
            f"a run of {rounds} rounds with {devices} devices, {cap} rounds for each, cannot be",
            hint="choose --devices 2 or more, --rounds and --participation-cap 1 or more",
        )
    if not 2 <= min_reports <= devices:
        raise ConfigError(
            f"--min-reports {min_reports} does not go with --devices {devices}",
            hint="choose 2 to the number of devices; 70% of it leaves room for dropouts",
        )
    adaptive = arguments.adaptive_clipping
    if arguments.consistency == "auto":
        consistency = cheapest(devices, arguments.corrupt_share, arguments.dropout_share)
    else:
        consistency = Consistency[arguments.consistency.upper()]
    privacy = Privacy(
        epsilon=epsilon_of_option(arguments.epsilon),
        delta=arguments.delta,
        clip_norm=arguments.clip_norm,
        participation_cap=cap,
        corrupt_share=arguments.corrupt_share,
        dropout_share=arguments.dropout_share,
        consistency=consistency,
        mechanism=Mechanism[arguments.mechanism.upper()],
        bits=arguments.bits,
        local_noise=arguments.local_noise,
        adaptive_clipping=None if adaptive is None else AdaptiveClipping(adaptive),
    )
    stage_s = arguments.stage_timeout
    return TaskConfig(
        task=task,
        population=population,
        bundle=BlobRef(Digest(bytes(32)), 0),
        dimension=dimension,
        rounds=rounds,
        goal_count=devices,
        min_check_ins=min_reports,
        min_reports=min_reports,
        training=Training(
            arguments.epochs,
            arguments.batch_size,
            arguments.max_steps,
            arguments.learning_rate,
            arguments.proximal,
        ),
        privacy=privacy,
        encoding=encoding_for(privacy, dimension=dimension, min_reports=min_reports, goal_count=devices),
        pacing=Pacing(
            selection_timeout_s=arguments.selection_timeout,
            advertise_timeout_s=stage_s,
            share_timeout_s=stage_s,
            report_timeout_s=arguments.report_timeout,
            unmask_timeout_s=stage_s,
            quiet_s=arguments.quiet,
        ),
        server_optimizer=arguments.server_optimizer,
        signer=signer,
        evaluation=evaluation,
    )
