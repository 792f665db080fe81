"""Faults in the order in which they once did harm, and each kind of fault that a folder of files can have.

After each of them `Run.step` compares everything with the oracle: charon, the kernel's policies,
the guard, what `status` says is wrong, and whether anything went unencrypted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import texts
from tests.chaos.faults import MOVABLE, Fault, as_args
from tests.chaos.run import Run
from tests.chaos.scene import NETWORKS, SECOND_SOURCE
from tests.chaos.shelf import SETTINGS
from tests.chaos.stage import make_stage
from tests.chaos.texts import MARK, Content, KeyText, PolicyText, SettingsText
from tests.support.netlab import missing_for_lab

PORTAL, OTHER = "10.10.0.21", "10.10.0.22"
GROUP, OWN, POLICY = "etc/psk.d/g.toml", "etc/psk.d/k1.toml", "etc/portal.d/p1.toml"


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    if missing := missing_for_lab():
        pytest.skip(f"no lab without {', '.join(missing)}")
    with make_stage() as stage:
        run = Run(stage, label=request.node.name)
        run.begin()
        yield run


def put(path: str, content: Content, how: str = "rename") -> Fault:
    return Fault("put", {"path": path, "content": as_args(content), "how": how})


def key(number: int, ident: str = "", *, beside: bool = False, portals: tuple[str, ...] = ()) -> KeyText:
    return KeyText(ident=ident, key=f"{MARK}{number:032x}", beside=beside, portals=portals)


def record(address: str = PORTAL) -> Fault:
    return Fault("add_record", {"address": address, "discovery": False})


def fault(name: str, **args: object) -> Fault:
    return Fault(name, args)


MANAGED = (put(GROUP, key(1, portals=(PORTAL, OTHER))), record())
"""A portal under the group key."""


def closed_and_orphaned(run: Run) -> bool:
    row = run.scene.expected.rows[PORTAL]
    return row.closed and row.orphaned


HOWS = pytest.mark.parametrize("how", ["remove", "garbage", "truncate"])


@HOWS
def test_a_portal_stays_closed_although_the_database_and_then_its_files_are_lost(run: Run, how: str) -> None:
    run.replay([*MANAGED, fault("lose_state", file="lib/state.db", how=how), fault("remove", path=GROUP)])
    assert closed_and_orphaned(run)
    run.replay([fault("restart_daemon", clean=False)])
    assert closed_and_orphaned(run)


@pytest.mark.parametrize("how", ["truncate", "garbage"])
def test_a_portal_stays_closed_whose_files_and_database_went_while_the_daemon_was_away(
    run: Run, how: str
) -> None:
    run.replay(
        [
            *MANAGED,
            fault("end_daemon", clean=True),
            fault("lose_state", file="lib/state.db", how=how),
            fault("remove", path=GROUP),
            fault("start_daemon"),
        ]
    )
    assert closed_and_orphaned(run)
    run.replay([fault("release", portal=PORTAL)])
    assert not run.scene.expected.is_closed(PORTAL)


def test_a_portal_that_a_full_disk_could_not_remember_stays_closed(run: Run) -> None:
    for step in (fault("fill_disk"), *MANAGED, fault("remove", path=GROUP)):
        run.step(step)
    assert closed_and_orphaned(run)
    run.replay([fault("free_disk"), fault("restart_daemon", clean=False)])
    assert closed_and_orphaned(run)


def test_the_guards_file_is_there_for_the_next_boot_although_somebody_removed_it(run: Run) -> None:
    run.replay(
        [
            *MANAGED,
            fault("lose_state", file="lib/guard.nft", how="remove"),
            fault("end_daemon", clean=False),
            fault("end_charon", clean=True),
            fault("tamper", how="flush ruleset"),
            fault("boot_guard"),
        ]
    )


def test_traps_that_were_flushed_are_loaded_again(run: Run) -> None:
    run.replay([*MANAGED, record(OTHER), fault("flush_xfrm", what="policy")])
    assert len(run.scene.expected.conns) == 2


def test_a_lost_folder_goes_on_hiding_the_same_files(run: Run) -> None:
    """Its keys stay in force, and its masks too: nothing of /run takes their place."""
    hidden = KeyText(ident="k1.lab", key=f"{MARK}{9:032x}", portals=(PORTAL,))
    run.replay(
        [
            put("run/psk.d/k1.toml", hidden),
            put("run/psk.d/k2.toml", key(8, "k2.lab")),
            put(OWN, key(2, "k1.lab", portals=(PORTAL,))),
            fault("mask", path="etc/psk.d/k2.toml"),
            record(),
            fault("take_away", folder="etc/psk.d"),
        ]
    )
    assert [conn.key for conn in run.scene.expected.conns.values()] == [key(2, "k1.lab").key]
    run.replay([fault("restart_charon", clean=False), fault("bring_back", folder="etc/psk.d")])


def test_whatever_is_wrong_with_a_file_its_last_good_content_stays_in_force_until_it_is_fixed(
    run: Run,
) -> None:
    run.replay(
        [
            put(OWN, key(2, "k1.lab", portals=(PORTAL,))),
            put(POLICY, PolicyText(portals=(PORTAL,), psk="k1")),
            put(SETTINGS, SettingsText()),
        ]
    )
    common = (*texts.SPOILS, "mode", "owner", "folder", "dangling", "outside")
    for path, hows in ((OWN, (*common, "hard-link")), (POLICY, common), (SETTINGS, set(common) - {"empty"})):
        for how in sorted(hows):
            run.step(fault("spoil", path=path, how=how))
            if how == "syntax":
                run.step(fault("restart_charon", clean=True))
                run.step(fault("restart_daemon", clean=False))
            run.step(fault("fix", path=path))
    assert len(run.scene.expected.conns) == 1


def test_a_key_in_a_file_beside_is_kept_as_well(run: Run) -> None:
    run.replay([put(OWN, key(2, "k1.lab", beside=True, portals=(PORTAL,))), record()])
    for how in ("beside gone", "beside empty", "beside mode"):
        run.replay([fault("spoil", path=OWN, how=how), fault("fix", path=OWN)])
    run.replay(
        [
            fault("spoil", path=OWN, how="beside gone"),
            fault("restart_daemon", clean=True),
            fault("fix", path=OWN),
        ]
    )
    run.replay([fault("rotate", path=OWN, key=key(3).key)])
    assert len(run.scene.expected.conns) == 1


def test_folders_that_go_or_cannot_be_trusted_change_nothing_and_are_reported(run: Run) -> None:
    run.replay([*MANAGED, put(POLICY, PolicyText(portals=(OTHER,), psk="g"))])
    before = run.scene.expected.conns
    for folder in MOVABLE[:3]:
        run.step(fault("take_away", folder=folder))
        if folder == "etc":
            run.step(fault("restart_daemon", clean=True))
        run.step(fault("bring_back", folder=folder))
        run.replay([fault("open_up", folder=folder), fault("shut", folder=folder)])
        run.replay([fault("exchange", folder=folder), fault("rotate", path=GROUP, key=key(5).key)])
    assert before.keys() == run.scene.expected.conns.keys()
    run.replay([fault("take_away", folder="etc"), fault("make_anew", folder="etc")])
    assert not run.scene.expected.conns
    assert {PORTAL, OTHER} <= run.scene.expected.closed


def test_every_way_of_writing_a_file_is_noticed(run: Run) -> None:
    run.replay([record()])
    for number, how in enumerate(("rename", "in-place", "halves", "editor", "linked", "in-place", "editor")):
        run.step(put(GROUP, key(10 + number), how))
        run.step(fault("litter", folder="etc/psk.d", names=[".g.toml.swp", "g.toml~", "#g.toml#"]))
    for volume in ("1" * 8, "2" * 8):
        contents = {path: as_args(key(int(volume), ident)) for path, ident in ((GROUP, ""), (OWN, "k1.lab"))}
        run.step(fault("swap_volume", folder="etc/psk.d", contents=contents, volume=volume))
    run.step(put(SETTINGS, SettingsText(), "linked"))
    run.step(fault("spoil", path=SETTINGS, how="syntax"))
    run.step(fault("spoil", path=OWN, how="owner"))  # the link's: what it leads to is as it was
    run.come_home()


def test_more_events_than_the_kernel_keeps_lose_no_change(run: Run) -> None:
    run.replay(
        [
            *MANAGED,
            fault("overflow", path=GROUP, key=key(20).key, events=20_000),
            fault("burst", rotations=[[GROUP, key(100 + number).key] for number in range(300)], litter=2000),
        ]
    )


def test_a_route_that_goes_a_network_that_closes_and_what_is_required_of_all(run: Run) -> None:
    run.replay(
        [
            put("etc/psk.d/a1.toml", key(1, "10.10.0.1")),
            put("etc/psk.d/a2.toml", key(2, SECOND_SOURCE)),
            record(),
            fault("route", portal=PORTAL, way="second"),
            fault("address", verb="del"),
            fault("route", portal=PORTAL, way="unreachable"),
            put("etc/portal.d/n1.toml", PolicyText(portals=(NETWORKS["n1"],))),
            put(SETTINGS, SettingsText(require=True)),
            fault("tamper", how="accept"),
            fault("link_down"),
            fault("link_up"),
            fault("remove", path=SETTINGS),
        ]
    )
