"""Faults, and actions of admins and programs on a machine, as values that can be printed and replayed.

Each fault has a function that does it, to the machine through a `Hand` and to the model in the
`Scene`, and one that picks arguments for it at random, or None where it makes no sense now.
Arguments are what JSON can hold.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos import texts
from tests.chaos.hand import Hand
from tests.chaos.scene import NETWORKS, PORTALS, SECOND_SOURCE, SOURCE, Rec, Scene
from tests.chaos.shelf import FOLDERS, SETTINGS, Bad, Mask, OnDisk, folder_of, name_of, path_of
from tests.chaos.texts import Content, KeyText, PolicyText, SettingsText, new_key

Args = dict[str, Any]
Do = Callable[[Scene, Hand, Args], None]
Pick = Callable[[Scene, random.Random], Args | None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done; prints as a call that does it again."""

    name: str
    args: Args

    def __str__(self) -> str:
        return f"Fault({self.name!r}, {self.args!r})"

    def do(self, scene: Scene, hand: Hand) -> None:
        KINDS[self.name].do(scene, hand, self.args)

    @property
    def tampers(self) -> bool:
        """Whether the guard is opened by it, for a moment or until somebody repairs it."""
        return KINDS[self.name].tampers


@dataclass(frozen=True, slots=True)
class Kind:
    do: Do
    pick: Pick
    weight: float
    tampers: bool = False


KINDS: dict[str, Kind] = {}


def kind(pick: Pick, weight: float, *, tampers: bool = False) -> Callable[[Do], Do]:
    def register(do: Do) -> Do:
        KINDS[do.__name__] = Kind(do, pick, weight, tampers)
        return do

    return register


def pick_fault(scene: Scene, rng: random.Random) -> Fault:
    """A fault that can happen now."""
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    while True:
        name = rng.choices(names, weights)[0]
        args = KINDS[name].pick(scene, rng)
        if args is not None:
            return Fault(name, args)


# --- contents ----------------------------------------------------------------------------------

KEY_NAMES = ("k1", "k2", "k3", "k4", "a1", "a2", "g")
POLICY_NAMES = ("p1", "p2", "p3", "p4", "n1", "n2")


def random_content(path: str, rng: random.Random) -> Content:
    name = name_of(path)
    if path == SETTINGS:
        return SettingsText(require=rng.random() < 0.2, log_level=rng.choice(("info", "debug", "warning")))
    if "/psk.d" in path:
        ident = {"a1": SOURCE, "a2": SECOND_SOURCE, "g": ""}.get(name, f"{name}.lab")
        portals = tuple(rng.sample(PORTALS, rng.randint(1, 3))) if rng.random() < 0.5 else ()
        beside = rng.random() < 0.2
        return KeyText(
            ident=ident, key=new_key(rng), portals=portals, wants_ipsec=rng.random() < 0.95, beside=beside
        )
    portals = (NETWORKS[name],) if name in NETWORKS else tuple(rng.sample(PORTALS, rng.randint(1, 2)))
    return PolicyText(
        portals=portals,
        psk=rng.choice(("", *KEY_NAMES, *KEY_NAMES)),
        target_id=rng.choice(("", "", "target.lab", "other.lab")),
        flags=rng.choice(("", *texts.FLAGS)) if rng.random() < 0.5 else "v2 transport",
    )


def as_args(content: Content) -> Args:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(content).items()}


def content_from(path: str, args: Args) -> Content:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in args.items()
    }
    if path == SETTINGS:
        return SettingsText(**values)
    return KeyText(**values) if "/psk.d" in path else PolicyText(**values)


def text_of(path: str, content: Content) -> bytes:
    if isinstance(content, KeyText):
        return content.text(f"{name_of(path)}.psk").encode()
    return content.text().encode()


def _paths(scene: Scene, *kinds: str) -> list[str]:
    """All places where a file of the game may lie and whose folder is there."""
    places = []
    for kind_name in kinds or FOLDERS:
        names = {"psk": KEY_NAMES, "portal": POLICY_NAMES, "settings": ("iscsi-ipsecd",)}[kind_name]
        places += [path_of(f, n) for f in FOLDERS[kind_name] if scene.exists(f) for n in names]
    return places


def _lying(scene: Scene, *kinds: str) -> list[str]:
    return [path for path in _paths(scene, *kinds) if path in scene.shelf.disk]


def _good(scene: Scene, *kinds: str) -> dict[str, Content]:
    """Files that are as they should be."""
    found = {path: scene.shelf.disk[path] for path in _lying(scene, *kinds)}
    return {
        path: lies for path, lies in found.items() if isinstance(lies, KeyText | PolicyText | SettingsText)
    }


def _content(lies: OnDisk | None) -> Content | None:
    if isinstance(lies, Bad):
        return lies.content
    return None if isinstance(lies, Mask) else lies


def _detach(hand: Hand, path: str, content: Content) -> None:
    """Nobody writes into a mounted volume: a link into it becomes a file of its own."""
    if hand.leads(path).startswith("..data/"):
        hand.put(path, text_of(path, content))


def _beside(path: str) -> str:
    return f"{folder_of(path)}/{name_of(path)}.psk"


# --- files -------------------------------------------------------------------------------------


def _pick_put(scene: Scene, rng: random.Random) -> Args | None:
    places = _paths(scene)
    if not places:
        return None
    etc = [path for path in places if path.startswith("etc/")]
    path = rng.choice(etc if etc and rng.random() < 0.85 else places)
    hows = ("rename", "rename", "rename", "in-place", "halves", "editor", "linked")
    return {
        "path": path,
        "content": as_args(random_content(path, rng)),
        "how": "rename" if path == SETTINGS else rng.choice(hows),
    }


@kind(_pick_put, 22)
def put(scene: Scene, hand: Hand, args: Args) -> None:
    """A file is written, by one of the ways in which programs write files."""
    path: str = args["path"]
    content = content_from(path, args["content"])
    _put(hand, path, content, args["how"], scene.shelf.disk.get(path))
    scene.shelf.disk[path] = content


def _put(hand: Hand, path: str, content: Content, how: str, before: OnDisk | None) -> None:
    if isinstance(content, KeyText) and content.beside:
        hand.put(_beside(path), content.key.encode() + b"\n")
    if isinstance(before, Bad | Mask) or hand.leads(path).startswith("..data/"):
        hand.remove(path)  # it may be a folder, or a link that leads elsewhere
        before = None
    data, folder = text_of(path, content), folder_of(path)
    match how:
        case "in-place" | "halves":
            hand.write(path, data, halves=how == "halves")
        case "editor":
            hand.write(f"{folder}/.{name_of(path)}.toml.swp", b"swap " * 50)
            hand.write(f"{folder}/4913", b"")
            hand.remove(f"{folder}/4913")
            if before is not None:
                hand.rename(path, f"{path}~")
            hand.write(path, data)
            hand.remove(f"{folder}/.{name_of(path)}.toml.swp")
        case "linked":
            real = f"..real-{name_of(path)}-{len(data)}"
            hand.put(f"{folder}/{real}", data)
            hand.link(real, path)
        case _:
            hand.put(path, data)


def _pick_rotate(scene: Scene, rng: random.Random) -> Args | None:
    good = {path: c for path, c in _good(scene, "psk").items() if isinstance(c, KeyText)}
    if not good:
        return None
    return {"path": rng.choice(sorted(good)), "key": new_key(rng)}


@kind(_pick_rotate, 10)
def rotate(scene: Scene, hand: Hand, args: Args) -> None:
    """A key is changed and nothing else."""
    before = scene.shelf.disk[args["path"]]
    assert isinstance(before, KeyText)
    content = KeyText(**{**asdict(before), "key": args["key"]})
    if content.beside:
        hand.put(_beside(args["path"]), content.key.encode())
    else:
        hand.put(args["path"], text_of(args["path"], content))
    scene.shelf.disk[args["path"]] = content


def _pick_remove(scene: Scene, rng: random.Random) -> Args | None:
    lying = _lying(scene)
    return {"path": rng.choice(lying)} if lying else None


@kind(_pick_remove, 7)
def remove(scene: Scene, hand: Hand, args: Args) -> None:
    hand.remove(args["path"])
    del scene.shelf.disk[args["path"]]


def _pick_spoil(scene: Scene, rng: random.Random) -> Args | None:
    good = _good(scene)
    if not good:
        return None
    path = rng.choice(sorted(good))
    hows = [*texts.SPOILS, "mode", "owner", "folder", "dangling", "outside", "hard-link"]
    if path == SETTINGS:
        hows.remove("empty")
    if "/psk.d" not in path:
        hows.remove("hard-link")
    content = good[path]
    if isinstance(content, KeyText) and content.beside:
        hows = ["beside gone", "beside empty", "beside mode"]
    return {"path": path, "how": rng.choice(hows)}


@kind(_pick_spoil, 13)
def spoil(scene: Scene, hand: Hand, args: Args) -> None:
    """A file becomes one that must be refused."""
    path, how = args["path"], args["how"]
    content = _content(scene.shelf.disk[path])
    assert content is not None
    _detach(hand, path, content)
    match how:
        case "mode":
            hand.chmod(path, 0o644 if "/psk.d" in path else 0o666)
        case "owner":
            hand.run("chown", "-h", "65534", str(hand.at(path)))
        case "folder":
            # in one step: a moment without the file would be its removal, and that counts
            spare = f"{folder_of(path)}/..folder"
            hand.mkdir(spare)
            hand.exchange(path, spare)
            hand.remove(spare)
        case "dangling":
            hand.link("..gone", path)
        case "outside":
            hand.put("beside/outside.toml", text_of(path, content))
            hand.link(str(hand.at("beside/outside.toml")), path)
        case "hard-link":
            hand.remove(f"{folder_of(path)}/second-name-of-{name_of(path)}")
            hand.hard_link(path, f"{folder_of(path)}/second-name-of-{name_of(path)}")
        case "beside gone":
            hand.remove(_beside(path))
        case "beside empty":
            hand.write(_beside(path), b"")
        case "beside mode":
            hand.chmod(_beside(path), 0o640)
        case _:
            hand.write(path, texts.spoiled(content, how))
    scene.shelf.disk[path] = Bad(how, content)


def _pick_fix(scene: Scene, rng: random.Random) -> Args | None:
    bad = [path for path in _lying(scene) if isinstance(scene.shelf.disk[path], Bad)]
    return {"path": rng.choice(bad)} if bad else None


@kind(_pick_fix, 9)
def fix(scene: Scene, hand: Hand, args: Args) -> None:
    """A file that had to be refused is as it was before."""
    path: str = args["path"]
    bad = scene.shelf.disk[path]
    assert isinstance(bad, Bad)
    assert bad.content is not None
    if bad.why in ("mode", "beside mode"):
        hand.chmod(path if bad.why == "mode" else _beside(path), 0o600)
    else:
        _put(hand, path, bad.content, "rename", bad)
    scene.shelf.disk[path] = bad.content


def _pick_mask(scene: Scene, rng: random.Random) -> Args | None:
    places = _paths(scene, "psk", "portal")
    return {"path": rng.choice(places)} if places else None


@kind(_pick_mask, 2)
def mask(scene: Scene, hand: Hand, args: Args) -> None:
    hand.remove(args["path"])
    hand.link("/dev/null", args["path"])
    scene.shelf.disk[args["path"]] = Mask()


def _pick_swap(scene: Scene, rng: random.Random) -> Args | None:
    folder = rng.choice(("etc/psk.d", "run/psk.d"))
    if not scene.exists(folder):
        return None
    paths = [path_of(folder, name) for name in rng.sample(("k1", "k2", "k3", "k4", "g"), rng.randint(1, 4))]
    contents = {}
    for path in paths:
        content = random_content(path, rng)
        assert isinstance(content, KeyText)
        contents[path] = {**as_args(content), "beside": False}
    return {"folder": folder, "contents": contents, "volume": f"{rng.getrandbits(32):08x}"}


@kind(_pick_swap, 4)
def swap_volume(scene: Scene, hand: Hand, args: Args) -> None:
    """All files of a mounted secret change at once, as a container runtime does it: one link is exchanged."""
    folder, volume = args["folder"], f"..{args['volume']}"
    linked = {
        path
        for path, lies in scene.shelf.disk.items()
        if isinstance(lies, Content) and hand.leads(path).startswith("..data/")
    }
    hand.mkdir(f"{folder}/{volume}")
    for path in sorted(p for p in linked if folder_of(p) == folder and p not in args["contents"]):
        # the volume holds it no more; the runtime removes its link after the swap
        hand.remove(path)
        del scene.shelf.disk[path]
    for path, fields in args["contents"].items():
        content = content_from(path, fields)
        hand.put(f"{folder}/{volume}/{name_of(path)}.toml", text_of(path, content))
    hand.link(volume, f"{folder}/..data")
    for path, fields in args["contents"].items():
        if hand.leads(path) != f"..data/{name_of(path)}.toml":
            hand.remove(path)
            hand.link(f"..data/{name_of(path)}.toml", path)
        scene.shelf.disk[path] = content_from(path, fields)
    for old in hand.names(folder):
        if old.startswith("..") and len(old) == len(volume) and old != volume:
            hand.remove(f"{folder}/{old}")


def _pick_touch(scene: Scene, rng: random.Random) -> Args | None:
    good = _good(scene)
    return {"path": rng.choice(sorted(good))} if good else None


@kind(_pick_touch, 2)
def touch(scene: Scene, hand: Hand, args: Args) -> None:
    content = _content(scene.shelf.disk[args["path"]])
    assert content is not None
    _detach(hand, args["path"], content)
    hand.touch(args["path"])


def _pick_litter(scene: Scene, rng: random.Random) -> Args | None:
    folders = [f for f in ("etc/psk.d", "etc/portal.d", "etc", "run/psk.d") if scene.exists(f)]
    names = (
        ".k1.toml.swp",
        "k1.toml~",
        "#k1.toml#",
        ".#k1.toml",
        "k1.toml.dpkg-new",
        "k1.toml.tmp",
        "README",
        ".hidden.toml",
    )
    return {"folder": rng.choice(folders), "names": rng.sample(names, 3)} if folders else None


@kind(_pick_litter, 3)
def litter(scene: Scene, hand: Hand, args: Args) -> None:
    """Files of editors and package managers, which are no configuration."""
    for name in args["names"]:
        hand.write(f"{args['folder']}/{name}", b'group = true\nkey = "nobody must ever load this key"\n')
    for name in args["names"][1:]:
        hand.remove(f"{args['folder']}/{name}")


def _pick_burst(scene: Scene, rng: random.Random) -> Args | None:
    good = {path: c for path, c in _good(scene, "psk").items() if isinstance(c, KeyText)}
    if not good:
        return None
    count = rng.choice((5, 20, 60, 300))
    return {
        "rotations": [[rng.choice(sorted(good)), new_key(rng)] for _ in range(count)],
        "litter": rng.choice((0, 50, 1000)),
    }


@kind(_pick_burst, 2)
def burst(scene: Scene, hand: Hand, args: Args) -> None:
    """Many changes, faster than anybody can look."""
    for number in range(args["litter"]):
        hand.write("beside/.noise", b"")
        folder = "etc/psk.d" if scene.exists("etc/psk.d") else "run/psk.d"
        if scene.exists(folder):
            hand.write(f"{folder}/.noise{number % 7}.tmp", b"")
    for path, key in args["rotations"]:
        rotate(scene, hand, {"path": path, "key": key})


# --- folders -----------------------------------------------------------------------------------

MOVABLE = ("etc", "etc/psk.d", "etc/portal.d", "run/psk.d", "run/portal.d")


def _pick_take_away(scene: Scene, rng: random.Random) -> Args | None:
    there = [folder for folder in MOVABLE if scene.exists(folder)]
    return {"folder": rng.choice(there)} if there and len(scene.away) < 2 else None


@kind(_pick_take_away, 2)
def take_away(scene: Scene, hand: Hand, args: Args) -> None:
    """A folder is moved away or unmounted."""
    folder: str = args["folder"]
    hand.rename(folder, f"beside/{folder.replace('/', '-')}")
    inside = {path: lies for path, lies in scene.shelf.disk.items() if path.startswith(f"{folder}/")}
    for path in inside:
        del scene.shelf.disk[path]
    scene.away[folder] = dict(inside)
    scene.reckon_lost()


def _pick_bring_back(scene: Scene, rng: random.Random) -> Args | None:
    back = [folder for folder in scene.away if scene.exists(folder.rpartition("/")[0] or "elsewhere")]
    return {"folder": rng.choice(back)} if back else None


@kind(_pick_bring_back, 10)
def bring_back(scene: Scene, hand: Hand, args: Args) -> None:
    folder: str = args["folder"]
    hand.rename(f"beside/{folder.replace('/', '-')}", folder)
    scene.shelf.disk.update(scene.away.pop(folder))  # type: ignore[arg-type]  # what was taken from there
    scene.reckon_lost()


@kind(_pick_bring_back, 1)
def make_anew(scene: Scene, hand: Hand, args: Args) -> None:
    """An admin gives a lost folder up: an empty one takes its place, and its files are forgotten."""
    folder: str = args["folder"]
    hand.remove(f"beside/{folder.replace('/', '-')}")
    hand.mkdir(folder)
    if folder == "etc":
        for below in ("etc/psk.d", "etc/portal.d"):
            if below not in scene.away:
                hand.mkdir(below)
    del scene.away[folder]
    scene.opened -= {
        o for o in scene.opened if o == folder or (o.startswith(f"{folder}/") and o not in scene.away)
    }
    scene.reckon_lost()


def _pick_exchange(scene: Scene, rng: random.Random) -> Args | None:
    there = [
        f
        for f in MOVABLE
        if scene.exists(f) and not any(o == f or o.startswith(f"{f}/") for o in scene.opened)
    ]
    return {"folder": rng.choice(there)} if there else None


@kind(_pick_exchange, 3)
def exchange(scene: Scene, hand: Hand, args: Args) -> None:
    """A folder is replaced by a copy of itself: the old watch sees nothing any more."""
    folder: str = args["folder"]
    beside = f"beside/{folder.replace('/', '-')}"
    hand.copy_tree(folder, f"{beside}.copy")
    hand.rename(folder, f"{beside}.old")
    hand.rename(f"{beside}.copy", folder)
    hand.remove(f"{beside}.old")


def _pick_open_up(scene: Scene, rng: random.Random) -> Args | None:
    there = [folder for folder in MOVABLE if scene.exists(folder) and folder not in scene.opened]
    return {"folder": rng.choice(there)} if there and not scene.opened else None


@kind(_pick_open_up, 2)
def open_up(scene: Scene, hand: Hand, args: Args) -> None:
    """Others may write to a folder: nothing in it can be trusted any more."""
    hand.chmod(args["folder"], 0o777)
    scene.opened.add(args["folder"])
    scene.reckon_lost()


def _pick_shut(scene: Scene, rng: random.Random) -> Args | None:
    there = [folder for folder in scene.opened if scene.exists(folder)]
    return {"folder": rng.choice(sorted(there))} if there else None


@kind(_pick_shut, 12)
def shut(scene: Scene, hand: Hand, args: Args) -> None:
    hand.chmod(args["folder"], 0o700)
    scene.opened.discard(args["folder"])
    scene.reckon_lost()


# --- open-iscsi --------------------------------------------------------------------------------


def _record_path(address: str) -> str:
    return f"iscsi/nodes/iqn.2026-01.lab:chaos/{address},3260,1/default"


def _pick_record(scene: Scene, rng: random.Random) -> Args | None:
    return {"address": rng.choice(PORTALS), "discovery": rng.random() < 0.3}


@kind(_pick_record, 8)
def add_record(scene: Scene, hand: Hand, args: Args) -> None:
    address: str = args["address"]
    path = f"iscsi/send_targets/{address},3260/st_config" if args["discovery"] else _record_path(address)
    hand.mkdir(path.rpartition("/")[0])
    text = texts.discovery(address) if args["discovery"] else texts.record(address)
    hand.write(path, text.encode())
    scene.records[path] = Rec(address)


def _pick_lying_record(scene: Scene, rng: random.Random) -> Args | None:
    return {"path": rng.choice(sorted(scene.records))} if scene.records else None


@kind(_pick_lying_record, 5)
def remove_record(scene: Scene, hand: Hand, args: Args) -> None:
    hand.remove(args["path"].rpartition("/")[0])
    del scene.records[args["path"]]


@kind(_pick_lying_record, 2)
def tear_record(scene: Scene, hand: Hand, args: Args) -> None:
    """Iscsiadm is in the middle of writing it."""
    rec = scene.records[args["path"]]
    hand.write(args["path"], texts.record(rec.address).encode()[:150])
    scene.records[args["path"]] = Rec(rec.address, torn=True)


def _pick_forget_records(scene: Scene, rng: random.Random) -> Args | None:
    return {} if scene.records else None


@kind(_pick_forget_records, 1)
def forget_records(scene: Scene, hand: Hand, args: Args) -> None:
    """open-iscsi's database goes as a whole."""
    hand.remove("iscsi/nodes")
    hand.remove("iscsi/send_targets")
    scene.records.clear()


def _pick_release(scene: Scene, rng: random.Random) -> Args | None:
    orphaned = [portal for portal, row in scene.expected.rows.items() if row.orphaned]
    return (
        {"portal": rng.choice(sorted(orphaned))}
        if orphaned and scene.daemon_up and not scene.shelf.disk_full
        else None
    )


@kind(_pick_release, 6)
def release(scene: Scene, hand: Hand, args: Args) -> None:
    portal: str = args["portal"]
    shown = f"[{portal}]:3260" if ":" in portal else f"{portal}:3260"
    hand.put(f"run/requests/release-{shown}", f"{shown}\n".encode())
    scene.held.discard(portal)
    scene.inherited.discard(portal)


# --- network -----------------------------------------------------------------------------------


def _pick_route(scene: Scene, rng: random.Random) -> Args | None:
    if not scene.link_up:
        return None
    portals = [portal for portal in PORTALS if ":" not in portal]
    return {
        "portal": rng.choice(portals),
        "way": rng.choice(("second", "first", "unreachable", "default", "default")),
    }


@kind(_pick_route, 7)
def route(scene: Scene, hand: Hand, args: Args) -> None:
    to = f"{args['portal']}/32"
    match args["way"]:
        case "second":
            hand.run("ip", "route", "replace", to, "dev", "eth0", "src", SECOND_SOURCE)
        case "first":
            hand.run("ip", "route", "replace", to, "dev", "eth0", "src", SOURCE)
        case "unreachable":
            hand.run("ip", "route", "replace", "unreachable", to)
        case _:
            hand.run("ip", "route", "del", "unreachable", to)
            hand.run("ip", "route", "del", to)


def _pick_address(scene: Scene, rng: random.Random) -> Args | None:
    return {"verb": rng.choice(("add", "del"))} if scene.link_up else None


@kind(_pick_address, 3)
def address(scene: Scene, hand: Hand, args: Args) -> None:
    hand.run("ip", "address", args["verb"], f"{SECOND_SOURCE}/24", "dev", "eth0")


def _pick_link_down(scene: Scene, rng: random.Random) -> Args | None:
    return {} if scene.link_up else None


@kind(_pick_link_down, 1.5)
def link_down(scene: Scene, hand: Hand, args: Args) -> None:
    hand.run("ip", "link", "set", "eth0", "down")
    scene.link_up = False


def _pick_link_up(scene: Scene, rng: random.Random) -> Args | None:
    return None if scene.link_up else {}


@kind(_pick_link_up, 40)
def link_up(scene: Scene, hand: Hand, args: Args) -> None:
    hand.run("ip", "link", "set", "eth0", "up")
    hand.run("ip", "-6", "address", "replace", "fd00:10::1/64", "dev", "eth0", "nodad")
    scene.link_up = True


# --- charon ------------------------------------------------------------------------------------


def _pick_charon_up(scene: Scene, rng: random.Random) -> Args | None:
    return {"clean": rng.random() < 0.5} if scene.charon_up else None


def _pick_charon_down(scene: Scene, rng: random.Random) -> Args | None:
    return None if scene.charon_up else {}


@kind(_pick_charon_up, 4)
def restart_charon(scene: Scene, hand: Hand, args: Args) -> None:
    end_charon(scene, hand, args)
    start_charon(scene, hand, {})


@kind(_pick_charon_up, 2)
def end_charon(scene: Scene, hand: Hand, args: Args) -> None:
    hand.stop_charon(clean=args["clean"])
    scene.charon_up = False


@kind(_pick_charon_down, 25)
def start_charon(scene: Scene, hand: Hand, args: Args) -> None:
    """As its unit does: charon answers, and then swanctl throws away what swanctl.conf does not know."""
    hand.start_charon()
    hand.swanctl("--load-all", "--noprompt")
    scene.charon_up = True


def _pick_swanctl(scene: Scene, rng: random.Random) -> Args | None:
    words = rng.choice((["--load-all", "--noprompt"], ["--load-creds", "--noprompt"], ["--load-conns"]))
    return {"words": words} if scene.charon_up else None


@kind(_pick_swanctl, 5)
def swanctl(scene: Scene, hand: Hand, args: Args) -> None:
    hand.swanctl(*args["words"])


def _pick_unload(scene: Scene, rng: random.Random) -> Args | None:
    if not scene.charon_up:
        return None
    return {"kind": rng.choice(("conn", "shared")), "number": rng.randrange(100)}


@kind(_pick_unload, 5)
def unload(scene: Scene, hand: Hand, args: Args) -> None:
    """Somebody unloads one of our connections or secrets."""
    names = sorted(hand.loaded(args["kind"]))
    if names:
        hand.unload(args["kind"], names[args["number"] % len(names)])


def _pick_flush(scene: Scene, rng: random.Random) -> Args | None:
    return {"what": rng.choice(("policy", "state"))}


@kind(_pick_flush, 3)
def flush_xfrm(scene: Scene, hand: Hand, args: Args) -> None:
    hand.run("ip", "xfrm", args["what"], "flush")


# --- the daemon --------------------------------------------------------------------------------


def _pick_daemon_up(scene: Scene, rng: random.Random) -> Args | None:
    return {"clean": rng.random() < 0.5} if scene.daemon_up else None


def _pick_daemon_down(scene: Scene, rng: random.Random) -> Args | None:
    return None if scene.daemon_up else {}


@kind(_pick_daemon_up, 1.5)
def restart_daemon(scene: Scene, hand: Hand, args: Args) -> None:
    end_daemon(scene, hand, args)
    start_daemon(scene, hand, {})


@kind(_pick_daemon_up, 1.5)
def end_daemon(scene: Scene, hand: Hand, args: Args) -> None:
    hand.stop_daemon(clean=args["clean"])
    scene.daemon_ended()


@kind(_pick_daemon_down, 20)
def start_daemon(scene: Scene, hand: Hand, args: Args) -> None:
    hand.start_daemon()
    scene.daemon_begins()


def _pick_hup(scene: Scene, rng: random.Random) -> Args | None:
    return {} if scene.daemon_up else None


@kind(_pick_hup, 2)
def reload_daemon(scene: Scene, hand: Hand, args: Args) -> None:
    hand.signal_daemon(signal.SIGHUP)


def _pick_overflow(scene: Scene, rng: random.Random) -> Args | None:
    picked = _pick_rotate(scene, rng)
    if picked is None or not scene.daemon_up or not picked["path"].startswith("etc/psk.d"):
        return None
    return {**picked, "events": rng.choice((200, 20_000))}


@kind(_pick_overflow, 0.7)
def overflow(scene: Scene, hand: Hand, args: Args) -> None:
    """The daemon is stopped while more happens than the kernel keeps events of; the last of it is a change."""
    hand.signal_daemon(signal.SIGSTOP)
    try:
        hand.noise("etc/psk.d", args["events"])
        rotate(scene, hand, {"path": args["path"], "key": args["key"]})
    finally:
        hand.signal_daemon(signal.SIGCONT)


# --- the guard ---------------------------------------------------------------------------------

TAMPERINGS: Mapping[str, str] = {
    "delete table": "delete table inet iscsi_ipsec",
    "flush portals": "flush set inet iscsi_ipsec portals4",
    "flush chain": "flush chain inet iscsi_ipsec output",
    "accept": "insert rule inet iscsi_ipsec output accept",
    "open a portal": "add element inet iscsi_ipsec open4 { 10.10.0.40 . 3260 }",
    "close a portal": "add element inet iscsi_ipsec portals4 { 10.10.0.40 . 3260 }",
    "dormant": "add table inet iscsi_ipsec { flags dormant; }",
}


def _pick_tamper(scene: Scene, rng: random.Random) -> Args | None:
    return {"how": rng.choice(("flush ruleset", *TAMPERINGS))}


@kind(_pick_tamper, 6, tampers=True)
def tamper(scene: Scene, hand: Hand, args: Args) -> None:
    if args["how"] == "flush ruleset":
        hand.run("nft", "flush", "ruleset")
        hand.restore_foreign_table()
    else:
        hand.run("nft", "-f", "-", text=TAMPERINGS[args["how"]] + "\n")
    if not scene.daemon_up:
        scene.guard_up = False


def _pick_boot_guard(scene: Scene, rng: random.Random) -> Args | None:
    return None if scene.daemon_up else {}


@kind(_pick_boot_guard, 6, tampers=True)
def boot_guard(scene: Scene, hand: Hand, args: Args) -> None:
    """Load the guard as iscsi-ipsec-guard.service does at boot and after each flush by nftables.service."""
    hand.run("nft", "-f", str(hand.at("lib/guard.nft")))
    scene.guard_up = True


# --- our own state -----------------------------------------------------------------------------


def _pick_lose_state(scene: Scene, rng: random.Random) -> Args | None:
    files = ("lib/state.db", "lib/state.db", "lib/guard.nft", "run/status.json", "run/metrics.prom")
    hows = ("remove", "garbage", "truncate")
    picked = {"file": rng.choice(files), "how": rng.choice(hows)}
    if picked["file"] == "lib/guard.nft" and (not scene.daemon_up or scene.shelf.disk_full):
        return None  # nobody could know any more which portals were closed
    return None if scene.shelf.disk_full else picked


@kind(_pick_lose_state, 2.5)
def lose_state(scene: Scene, hand: Hand, args: Args) -> None:
    """A file of the daemon's own is damaged."""
    path, how = args["file"], args["how"]
    if how == "remove":
        hand.remove(path)
    else:
        hand.write(path, b"" if how == "truncate" else b"no database, no table, no JSON " * 300)
    if path == "lib/state.db":
        scene.state_lost(removed=how == "remove")
    _next_pass(scene, hand)


def _pick_fill(scene: Scene, rng: random.Random) -> Args | None:
    return None if scene.shelf.disk_full or not scene.daemon_up else {}


@kind(_pick_fill, 1)
def fill_disk(scene: Scene, hand: Hand, args: Args) -> None:
    hand.fill("lib/filler")
    scene.shelf.disk_full = True


def _pick_free(scene: Scene, rng: random.Random) -> Args | None:
    return {} if scene.shelf.disk_full else None


@kind(_pick_free, 12)
def free_disk(scene: Scene, hand: Hand, args: Args) -> None:
    hand.remove("lib/filler")
    scene.shelf.disk_full = False
    _next_pass(scene, hand)


def _next_pass(scene: Scene, hand: Hand) -> None:
    """The daemon does not watch its own folder; it checks it in its next pass, within 30 s."""
    if scene.daemon_up:
        hand.signal_daemon(signal.SIGHUP)


# --- somebody else -----------------------------------------------------------------------------


def _pick_foreign(scene: Scene, rng: random.Random) -> Args | None:
    return {"friend": f"192.0.2.{rng.randint(1, 254)}"}


@kind(_pick_foreign, 1)
def change_foreign_table(scene: Scene, hand: Hand, args: Args) -> None:
    """Somebody works on a table of their own."""
    hand.run("nft", "-f", "-", text=f"add element inet foreign friends {{ {args['friend']} }}\n")
    hand.note_foreign_table()
