"""A coordinator that tries to see one device's update, with all that the protocol gives it: it gets nothing.

Each attack is played to its end, and then the arithmetic of unmasking is done with whatever was won.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import edge_sdk
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import session
from edge_sdk.protocol.checks import sharers_digest
from edge_sdk.protocol.messages import Survivors, UnmaskingShares, bitmap, members
from edge_sdk.protocol.policy import encoding_of
from edge_sdk.secagg import client, modular, shamir
from edge_sdk.secagg.keys import KeyPair
from tests.simulation.world import device_name
from tests.unit.cohort import Member, Round, planned

VICTIM = 3
CORRUPT_SHARE = 0.05
SHARE_BYTES = client.SHARE_BYTES


class Hostile(Round):
    """A round up to the masked inputs, by the book; then the coordinator may show anybody any survivors."""

    def __init__(self, size: int) -> None:
        super().__init__(size, planned(goal_count=size, min_reports=size // 2, corrupt_share=CORRUPT_SHARE))
        self.until_advertised()
        self.shared: dict[int, bytes] = {}
        for name, keys in self.share().items():
            self.shared[self.index(name)] = keys.commitment
            self.tell(name, keys)
        for name, message in self.report().items():
            self.vectors[name] = modular.unpack(message.inline, encoding_of(self.plan).length, self.plan.bits)
            self.tell(name, message)

    def without(self, index: int) -> Survivors:
        """The survivors as if one device had dropped out."""
        size = self.cohort.size
        return replace(self.survivors, survivors=bitmap(set(range(size)) - {index}, size))

    def honest(self) -> list[Member]:
        """Everybody but the victim and the colluders, who are those most useful: its neighbours."""
        return [self[index] for index in range(self.cohort.size) if index not in (VICTIM, *self.colluders())]

    def colluders(self) -> tuple[int, ...]:
        """As many as the plan withstands."""
        return self.cohort.neighbours[VICTIM][: math.floor(CORRUPT_SHARE * self.cohort.size + 1e-9)]


@dataclass
class Loot:
    """What a coordinator holds against one device: shares of its self seed and of its mask key, by their points."""

    held: Hostile
    self_seed: dict[int, bytes] = field(default_factory=dict)
    mask_key: dict[int, bytes] = field(default_factory=dict)

    def ask(self, member: Member, survivors: Survivors) -> None:
        """Show a member a survivor set; keep what it says of the victim. It may decline, and then says nothing."""
        try:
            effects = member.hears(survivors)
        except RemoteProtocolError:
            return
        answers = [e.message for e in effects if isinstance(e, session.Send)]
        for answer in answers:
            if not isinstance(answer, UnmaskingShares) or VICTIM not in answer.indices:
                continue
            position = answer.indices.index(VICTIM)
            share = answer.shares[SHARE_BYTES * position : SHARE_BYTES * (position + 1)]
            alive = members(survivors.survivors, self.held.cohort.size)
            assert alive is not None
            pool = self.self_seed if VICTIM in alive else self.mask_key
            pool[self.held.index(member.name) + 1] = share

    def secrets(self) -> tuple[bytes | None, bytes | None]:
        """The victim's self seed and mask key, where the shares give them away."""
        cohort, context = self.held.cohort, self.held.config.context
        threshold = cohort.parameters.threshold
        seed = key = None
        if len(self.self_seed) >= threshold:
            found = shamir.combine(self.self_seed, threshold)
            if client.commitment(context, VICTIM, found) == self.held.shared[VICTIM]:
                seed = found
        if len(self.mask_key) >= threshold:
            found = shamir.combine(self.mask_key, threshold)
            if KeyPair.from_private(found).public == cohort.entries[VICTIM].message.mask_public:
                key = found
        return seed, key

    def bare(self) -> modular.Words | None:
        """The victim's vector without its masks, if both secrets are known: the attack's prize."""
        seed, key = self.secrets()
        if seed is None or key is None:
            return None
        cohort, config, bits = self.held.cohort, self.held.config, self.held.plan.bits
        vector = self.held.vectors[device_name(VICTIM)].astype(modular.work_dtype(bits))
        pair = KeyPair.from_private(key)
        masks = [(seed, -1)]
        for neighbour in cohort.neighbours[VICTIM]:
            public = cohort.entries[neighbour].message.mask_public
            shared = pair.agree(public)
            mask, sign = client.pairwise_mask(
                shared,
                config.context,
                cohort.root,
                sharers_digest(self.held.survivors.sharers),
                VICTIM,
                neighbour,
            )
            masks.append((mask, -sign))
        modular.add_masks(vector, masks)
        return modular.reduce(vector, bits)


def shown_to_both(held: Hostile, members_asked: list[Member], loot: Loot) -> None:
    """Copies of a device's whole state answer one set each: what a device that forgets would do."""
    for member in members_asked:
        loot.ask(copy.deepcopy(member), held.survivors)
        loot.ask(copy.deepcopy(member), held.without(VICTIM))


@pytest.mark.parametrize("size", [24, 60])
def test_if_devices_answered_twice_the_attack_would_win(size: int) -> None:
    """The control: the arithmetic below is right, and what stops it is that devices answer once."""
    held = Hostile(size)
    loot = Loot(held)
    shown_to_both(held, held.honest(), loot)
    bare = loot.bare()
    assert bare is not None
    # Without masks, the victim's small numbers: noise and update, far from the ends of the modulus.
    assert np.abs(modular.centre(bare, held.plan.bits)).max() < 2**held.plan.bits / 8


@pytest.mark.parametrize("size", [24, 60])
def test_two_survivor_sets_with_the_colluders_help_win_one_secret_at_most(size: int) -> None:
    """Whatever part of the honest is shown the one set and the rest the other; colluders give all they hold."""
    reference = Hostile(size)
    honest, colluders = reference.honest(), [reference[index] for index in reference.colluders()]
    # The places where the victim's neighbours are split most evenly decide; a few more to either side.
    neighbours = [member for member in honest if reference.index(member.name) in reference.cohort.neighbours[VICTIM]]
    middle = len(neighbours) // 2
    won = set()
    for cut in sorted({0, middle - 2, middle - 1, middle, middle + 1, middle + 2, len(neighbours)}):
        loot = Loot(reference)
        shown_to_both(reference, colluders, loot)
        for position, member in enumerate(neighbours):
            asked = copy.deepcopy(member)
            loot.ask(asked, reference.survivors if position < cut else reference.without(VICTIM))
            # Asked again with the other set it says nothing new.
            before = len(loot.self_seed), len(loot.mask_key)
            loot.ask(asked, reference.without(VICTIM) if position < cut else reference.survivors)
            assert (len(loot.self_seed), len(loot.mask_key)) == before
        seed, key = loot.secrets()
        won.add((seed is not None, key is not None))
        assert loot.bare() is None
    # The attack was no sham: at its ends it wins what an honest round gives away.
    assert won >= {(True, False), (False, True)}


def test_the_victim_itself_is_not_asked_to_betray_itself() -> None:
    """It answers the set that it is in, and declines the one that says it is gone."""
    held = Hostile(24)
    loot = Loot(held)
    loot.ask(copy.deepcopy(held[VICTIM]), held.without(VICTIM))
    assert not loot.self_seed
    assert not loot.mask_key


def test_what_an_honest_round_gives_away_does_not_unmask_anybody() -> None:
    """All survivors' self seeds are known in the end; each vector is still under its pairwise masks."""
    held = Hostile(24)
    loot = Loot(held)
    for member in held.honest():
        loot.ask(member, held.survivors)
    seed, key = loot.secrets()
    assert seed is not None
    assert key is None
    left = held.vectors[device_name(VICTIM)].astype(modular.work_dtype(held.plan.bits))
    modular.add_masks(left, [(seed, -1)])
    values = np.abs(modular.centre(modular.reduce(left, held.plan.bits), held.plan.bits))
    assert values.max() > 2**held.plan.bits / 8


def test_fewer_devices_than_a_device_asks_for_get_no_answer() -> None:
    """A tiny set around the victim: by the plan's own floor nobody answers it."""
    held = Hostile(24)
    few = {VICTIM, *held.cohort.neighbours[VICTIM][: held.plan.min_reports - 2]}
    tiny = replace(held.survivors, survivors=bitmap(few, held.cohort.size))
    loot = Loot(held)
    for index in few:
        loot.ask(copy.deepcopy(held[index]), tiny)
    assert not loot.self_seed
    assert not loot.mask_key


def test_survivors_of_another_round_are_not_answered() -> None:
    """Replayed as they were signed: the round's id is not this one's."""
    held = Hostile(24)
    replayed = replace(held.survivors, rid=type(held.plan.rid)(bytes(16)))
    loot = Loot(held)
    for member in held.honest():
        loot.ask(member, replayed)
    assert not loot.self_seed


def test_no_secret_is_drawn_from_a_generator_that_can_be_predicted() -> None:
    """Python's and numpy's generators simulate; what runs on devices and at the coordinator never touches them."""
    root = Path(edge_sdk.__file__).parent.parent
    found = []
    for package in ("edge_sdk", "coordinator"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if re.search(r"^\s*(import random\b|from random import)|np\.random|numpy\.random", text, re.MULTILINE):
                found.append(path.relative_to(root).as_posix())
    # When to connect again, and a forecast's trial noise: no secret is near.
    assert sorted(found) == ["coordinator/privacy/forecast.py", "edge_sdk/runtime/mqtt.py"]
