"""A run: faults in a row, and after each settling everything is compared."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.chaos import checks
from tests.chaos.faults import Fault, pick_fault
from tests.chaos.scene import Scene
from tests.chaos.stage import Stage
from tests.support.netlab import NeverHappenedError, wait_until

SETTLED_WITHIN = 20.0
"""Seconds after which a difference is a failure. No promise: machines are slow."""


class ChaosError(AssertionError):
    """Something is not as it must be; the text says what to run to see it again."""


class Run:
    """``proof_every``: after so many steps a real IKE authentication shows which key is in force."""

    def __init__(self, stage: Stage, *, proof_every: int = 8, label: str = "") -> None:
        self.stage, self.scene = stage, Scene()
        self.label = label
        self.done: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.proofs = 0
        self._proof_every = proof_every
        self._watched = checks.Watched()
        self._rng = random.Random(label)  # noqa: S311  # to be repeated, not to be secret
        self.times: list[float] = []

    def begin(self) -> None:
        """The daemon starts on empty folders, beside what is somebody else's."""
        stage = self.stage
        stage.hand.note_foreign_table()
        self._watched.foreign_conn = stage.charon.connections()["foreign"]
        stage.hand.start_daemon()
        stage.guard_rules = checks.rules_of(stage.hand.run("nft", "list", "table", "inet", "iscsi_ipsec"))
        # and what holds back IKE's deletes, on each of its ports
        assert stage.guard_rules.count("drop") == 16 + 2, (
            "each set of closed portals has its rule in each chain"
        )
        self._settle(stage.lab.wire.mark(), frozenset(), tampered=False)

    def random_steps(
        self, rng: random.Random, count: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        for _ in range(count):
            self.step(pick_fault(self.scene, rng), say)
        self.come_home()

    def replay(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self.step(fault)
        self.come_home()

    def come_home(self) -> None:
        """Whatever is down comes up again, and all of it heals."""
        scene = self.scene
        for name, missing in (
            ("link_up", not scene.link_up),
            ("free_disk", scene.shelf.disk_full),
            ("start_charon", not scene.charon_up),
            ("start_daemon", not scene.daemon_up),
        ):
            if missing:
                self.step(Fault(name, {}))
        self._prove()

    def step(self, fault: Fault, say: Callable[[str], None] = lambda _: None) -> None:
        began = time.monotonic()
        self.done.append(fault)
        self.counts[fault.name] += 1
        say(f"{len(self.done)}: {fault}")
        mark = self.stage.lab.wire.mark()
        before = self._closed()
        if fault.tampers:
            self.stage.knocker.closed = frozenset()
        try:
            fault.do(self.scene, self.stage.hand)
            self._settle(mark, before, tampered=fault.tampers)
            if len(self.done) % self._proof_every == 0:
                self._prove()
        except Exception as err:
            raise ChaosError(self._story(err)) from err
        self.times.append(time.monotonic() - began)

    def _closed(self) -> frozenset[str]:
        if not self.scene.guard_up:
            return frozenset()
        return frozenset(a for a in checks.ADDRESSES if self.scene.expected.is_closed(a))

    # -- settling -------------------------------------------------------------------------------

    def _settle(self, mark: int, before: frozenset[str], *, tampered: bool) -> None:
        stage, scene = self.stage, self.scene
        if scene.daemon_up:
            scene.adopt(stage.source_of)
        seen: list[str] = []

        def settled() -> bool:
            seen[:] = self._differences()
            return not seen

        try:
            wait_until(settled, "all is as it must be", timeout=SETTLED_WITHIN, interval=0.01)
        except NeverHappenedError as err:
            raise AssertionError(f"{err}\n{checks.says(seen)}") from None
        found = self._watched.foreign(stage, scene) + self._watched.log(stage)
        after = self._closed()
        stage.knocker.closed = after
        found += self._knock(mark, before & after, after, tampered=tampered)
        if stage.lab.wire.dropped:
            found.append("the recorder missed frames")
        if found:
            raise AssertionError(checks.says(found))

    def _differences(self) -> list[str]:
        stage, scene = self.stage, self.scene
        if not scene.daemon_up:
            return []
        found = checks.status_differences(stage, scene, scene.expected)
        if not found and scene.charon_up:
            found = (
                checks.charon_differences(stage, scene.expected)
                or self._watched.secret_names(stage, scene.expected)
                or checks.trap_differences(stage, scene.expected)
            )
        return found or checks.guard_differences(stage, scene, scene.expected)

    def _knock(self, mark: int, always: frozenset[str], now: frozenset[str], *, tampered: bool) -> list[str]:
        """Check that portals closed before and now were never open in between, and that open ones answer."""
        stage = self.stage
        found = []
        if not tampered:
            found += [f"unencrypted: {frame}" for frame in stage.in_clear(mark, always)]
        mark = stage.lab.wire.mark()
        stage.knock(now)
        if self.scene.link_up and self.scene.guard_up:
            for address in list(checks.reachable(stage, self.scene))[:2]:
                if not stage.answers(address):
                    found.append(f"{address} is open and does not answer")
        found += [f"unencrypted: {frame}" for frame in stage.in_clear(mark, now)]
        return found

    def _prove(self) -> None:
        """The key that a connection must use is the one that authenticates it."""
        scene = self.scene
        conns = [conn for _, conn in sorted(scene.expected.conns.items())]
        if not (scene.daemon_up and scene.charon_up and scene.link_up and conns):
            return
        conn = self._rng.choice(conns)
        if not self.stage.authenticates(conn):
            raise AssertionError(
                f"{conn.name} does not authenticate as {conn.local_id} with the key of {conn.key_name}"
            )
        self.proofs += 1

    # -- telling --------------------------------------------------------------------------------

    def _story(self, err: Exception) -> str:
        steps = ",\n    ".join(str(fault) for fault in self.done)
        log = self.stage.daemon.tail(25)
        return (
            f"{self.label}, step {len(self.done)}, {self.done[-1]}:\n{type(err).__name__}: {err}\n\n"
            f"daemon's log:\n{log}\n\nthe steps so far:\n[\n    {steps},\n]"
        )
