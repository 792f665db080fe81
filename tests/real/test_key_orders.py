"""Every order in which up to four keys may reach charon: each identity has its own key, or the group's.

The operations are what the daemon would do (derive, plan, apply); only their order is the
test's. The far end is a charon configured by hand that holds one key for each identity, so an
IKE SA that it calls established proves key and identity.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

import pytest

from iscsi_ipsec.adapters.charon import Charon as OurCharon
from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.base.identity import Peer as Admitted
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import IkeMode, Tuning
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.ike.charon_diff import Operation, plan
from tests.support.ike import TARGET, Ike, connection
from tests.support.netlab import Charon, Lab, wait_until
from tests.support.pair import SIGNS_OF_FAILURE
from tests.support.reached import (
    FOREIGN,
    HERE,
    KEYS,
    REACHED,
    Message,
    awaiting,
    established,
    expected_of,
    secret,
    spell,
)
from tests.support.values import (
    charon_state,
    choice,
    derived,
    encoded,
    group,
    identity,
    per_id,
    policy,
    serves,
)

ALL_IKE = pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
MODES = {Ike.V2: IkeMode.V2, Ike.MAIN: IkeMode.MAIN, Ike.AGGRESSIVE: IkeMode.AGGRESSIVE}
PROPOSALS = ("aes128-sha256-ecp256",)

_serial = itertools.count()

FULL_ORDERS = list(itertools.permutations(KEYS))
ORDERS = [order for count in range(1, 5) for order in itertools.permutations(KEYS, count)]


@pytest.fixture(scope="module")
def ends(lab: Lab) -> Iterator[Ends]:
    for reached in REACHED:
        lab.node("target").add_address(reached.address)
    ends = Ends(lab.ike_only("initiator"), lab.ike_only("target"))
    yield ends
    ends.close()


class Ends:
    """Ours, which gets the daemon's operations, and the far one; each on one pipelined session."""

    def __init__(self, ours: Charon, far: Charon) -> None:
        self.ours, self.far = ours, far
        self._sessions = {end: OurCharon(str(end.socket)) for end in (ours, far)}

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    def send(self, end: Charon, messages: Iterable[Message]) -> None:
        refused = [answer for answer in self._sessions[end].apply(list(messages)) if answer]
        assert not refused

    def apply(self, operations: Iterable[Operation]) -> None:
        self.send(self.ours, ((operation.command, operation.message) for operation in operations))

    def observe(self) -> CharonState:
        return self._sessions[self.ours].observe()

    def initiate(self, end: Charon, names: Iterable[str]) -> None:
        self.send(end, (("initiate", {"ike": name, "timeout": "-1"}) for name in names))

    def marks(self) -> tuple[int, int]:
        return self.ours.log_mark(), self.far.log_mark()

    def since(self, marks: tuple[int, int]) -> tuple[str, str]:
        """The lines of both logs since then."""
        return self.ours.log_text(marks[0]), self.far.log_text(marks[1])

    def clear(self) -> None:
        """Nothing is left in either charon."""
        for end in (self.far, self.ours):
            conns, secrets = end.connections(), end.secrets()
            end.forget_sas()
            self.send(end, (("unload-conn", {"name": name}) for name in conns))
            self.send(end, (("unload-shared", {"id": name}) for name in secrets))


def operations_for(desired: Desired, order: Sequence[str], *, last_first: bool = False) -> list[Operation]:
    """All that is to be loaded, the secrets in the order of their keys, then the connections."""
    named = zip(desired.secrets, encoded(desired)[0], strict=True)
    rank = {secret.id: order.index(entry.keys[0]) for entry, secret in named}
    loads = plan(*encoded(desired), charon_state())
    secrets = [operation for operation in loads if operation.command == "load-shared"]
    connections = [operation for operation in loads if operation.command == "load-conn"]
    secrets.sort(key=lambda operation: rank[operation.item])
    return [*secrets, *(connections[::-1] if last_first else connections)]


def failure(log: str) -> bool:
    return any(sign in log for sign in SIGNS_OF_FAILURE)


Arrival = Callable[[Ends, Sequence[str], Callable[[Sequence[str]], Desired]], None]


# -- initiator -------------------------------------------------------------------------------


def our_keys(names: Iterable[str], ike: Ike) -> list[Key]:
    made: list[Key] = []
    for name in names:
        if name == "group":
            made.append(group(secret=KEYS[name], flags=choice(MODES[ike])))
        else:
            (reached,) = [r for r in REACHED if r.key == name]
            made.append(
                per_id(
                    reached.identity,
                    name,
                    secret=KEYS[name],
                    portals=[reached.address],
                    flags=choice(MODES[ike]),
                )
            )
    return made


def as_initiator(names: Sequence[str], ike: Ike) -> Desired:
    policies = [
        policy(r.address, name=f"san-{r.address}", tuning=Tuning(ike_proposals=PROPOSALS)) for r in REACHED
    ]
    sources = {r.address: HERE for r in REACHED}
    return derived(*our_keys(names, ike), *policies, sources=sources, local=(HERE,))


def at_once(ends: Ends, order: Sequence[str], derive: Callable[[Sequence[str]], Desired]) -> None:
    """All files are there when the daemon starts; the secrets are loaded in this order."""
    ends.apply(operations_for(derive(order), order, last_first=len(order) % 2 == 0))


def one_by_one(ends: Ends, order: Sequence[str], derive: Callable[[Sequence[str]], Desired]) -> None:
    """Each file is dropped when all before it are in force: secrets and connections are replaced on the way."""
    for count in range(1, len(order) + 1):
        ends.apply(plan(*encoded(derive(order[:count])), ends.observe()))


@ALL_IKE
@pytest.mark.parametrize(
    ("arrive", "orders"), [(at_once, ORDERS), (one_by_one, FULL_ORDERS)], ids=["at-once", "one-by-one"]
)
def test_an_initiator_proves_each_identity_with_its_own_key_or_the_groups_in_every_order(
    ends: Ends, ike: Ike, arrive: Arrival, orders: Sequence[Sequence[str]]
) -> None:
    for order in orders:
        expected = expected_of(order)
        ends.clear()
        ends.send(ends.ours, [FOREIGN])
        arrive(ends, order, lambda names: as_initiator(names, ike))
        ends.send(ends.far, awaiting(ike, expected))
        must = {(reached.address, ident) for reached, (ident, _) in expected.items()}
        marks = ends.marks()
        connections = as_initiator(order, ike).connections
        assert {str(wanted.binding.portal.address) for wanted in connections} == {r.address for r in expected}
        ends.initiate(ends.ours, (wanted.name for wanted in connections))
        wait_until(
            partial(lambda marks, must: established(ends.since(marks)[1]) == must, marks, must),
            f"{must} are established after loading {order}",
            timeout=5,
            interval=0.003,
            detail=partial(lambda marks: "\n".join(ends.since(marks)), marks),
        )


@ALL_IKE
def test_the_control_the_naive_owners_give_an_identity_the_groups_key_in_every_order(
    ends: Ends, ike: Ike
) -> None:
    for order in FULL_ORDERS:
        desired = as_initiator(order, ike)
        ends.clear()
        ends.apply(o for o in operations_for(desired, order) if o.command == "load-conn")
        for name in order:  # a key for whoever has its identity, the group's for everybody else
            owners = [spell(r.identity) for r in REACHED if r.key == name] or ["%any"]
            ends.send(ends.ours, [secret(name, name, owners)])
        ends.send(ends.far, awaiting(ike, expected_of(order)))
        marks = ends.marks()
        (wanted,) = [c for c in desired.connections if str(c.local_id) == "a.lab"]
        ends.initiate(ends.ours, [wanted.name])
        wait_until(
            partial(lambda marks: any(map(failure, ends.since(marks))), marks),
            f"a.lab is refused after loading {order}",
            interval=0.003,
        )
        assert not established(ends.since(marks)[1])


# -- target ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """The peer that is admitted from an address of the far end; ``key``: its explicit key, if there is one."""

    address: str
    key: str
    name: str = ""
    admitted: bool = True  # the policy's ``initiators`` name it

    def identity(self, ike: Ike) -> str:
        """A name, but for main mode, which knows peers by their addresses only."""
        return self.address if ike is Ike.MAIN or not self.name else self.name


PEERS = (
    Peer("10.10.0.11", "a", "a.lab"),
    Peer("10.10.0.12", "b", "b.lab"),
    Peer("10.10.0.13", "s"),
    Peer("10.10.0.14", ""),
    Peer("10.10.0.2", "", "stranger.lab", admitted=False),
)
NETWORK = "10.10.0.8/29"
NEXT = {"a": "b", "b": "s", "s": "a", "": "a"}


def as_target(names: Sequence[str], ike: Ike) -> Desired:
    keys: list[Key] = []
    for name in names:
        if name == "group":
            keys.append(group(secret=KEYS[name]))
        else:
            (peer,) = [p for p in PEERS if p.key == name]
            keys.append(per_id(peer.identity(ike), name, secret=KEYS[name]))
    initiators: list[Admitted] = [ip_network(NETWORK)]
    if ike is not Ike.MAIN:
        initiators += [identity(p.name) for p in PEERS if p.name and p.admitted]
    served = serves(
        HERE,
        target_id=identity("target.lab"),
        initiators=tuple(initiators),
        flags=choice(MODES[ike]),
        tuning=Tuning(ike_proposals=PROPOSALS),
    )
    return derived(*keys, served, local=(HERE,))


def right_key(peer: Peer, names: Sequence[str]) -> str:
    """The only key with which the peer may come in; empty for none."""
    return peer.key if peer.key in names else "group" if peer.admitted and "group" in names else ""


ROUNDS: Mapping[str, Callable[[Peer, Sequence[str]], str]] = {
    "its right key": lambda peer, names: right_key(peer, names) or "group",
    "the group's key": lambda peer, names: "group",
    "another's key": lambda peer, names: NEXT[peer.key],
}


def come_in(ends: Ends, ike: Ike, held: Mapping[Peer, str]) -> set[str]:
    """Have each peer try with the key that it holds; the identities that our charon took for proven."""
    # a name of its own for every attempt: charon may still speak of an earlier one
    names = {peer: f"{peer.address}-{next(_serial)}" for peer in held}
    for peer, key in held.items():
        owner = spell(peer.identity(ike))
        settings = connection(ike, local=peer.address, remote=HERE, local_id=owner, remote_id=TARGET)
        ends.send(
            ends.far,
            [secret(peer.address, key, [owner, TARGET]), ("load-conn", {names[peer]: settings})],
        )
    marks = ends.marks()
    ends.initiate(ends.far, names.values())

    def decided() -> bool:
        ours, far = ends.since(marks)
        lines = far.splitlines()
        believed = {ident for _, ident in established(ours)}
        return all(
            peer.identity(ike) in believed
            or any(f"<{names[peer]}|" in line and failure(line) for line in lines)
            for peer in held
        )

    wait_until(
        decided, f"{held} are let in or not", interval=0.003, detail=lambda: "\n".join(ends.since(marks))
    )
    log = ends.since(marks)[0]
    ends.far.forget_sas()
    proven = set(re.findall(r"authentication of '([^']*)' with pre-shared key successful", log))
    return proven | {ident for _, ident in established(log)}


@ALL_IKE
@pytest.mark.parametrize(
    ("arrive", "orders", "rounds"),
    [(at_once, ORDERS, ["its right key"]), (one_by_one, FULL_ORDERS, list(ROUNDS))],
    ids=["at-once", "one-by-one"],
)
def test_a_target_takes_each_identity_with_its_own_key_or_the_groups_and_no_other_in_every_order(
    ends: Ends, ike: Ike, arrive: Arrival, orders: Sequence[Sequence[str]], rounds: Sequence[str]
) -> None:
    for order in orders:
        ends.clear()
        arrive(ends, order, lambda names: as_target(names, ike))
        for round_ in rounds:
            held = {peer: ROUNDS[round_](peer, order) for peer in PEERS}
            right = {p.identity(ike) for p, key in held.items() if key == right_key(p, order)}
            assert come_in(ends, ike, held) == right, f"with {round_} after loading {order}"
