"""The story: an admin brings a host's iSCSI inside IPsec with files, and makes mistakes on the way."""

from __future__ import annotations

from tests.support.demo.narrator import Disappointment, Narrator
from tests.support.demo.stage import HOST_ID, Stage, set_stage
from tests.support.netlab import Child, Esp, Lab, NeverHappenedError, Result, available_esp, wait_until

GROUP_KEY = "a key that every host of the group has"
OWN_KEY = "the key of db1 alone, from January on"
NEXT_KEY = "the key of db1 alone, from February on"


class Story:
    """Chapters in order; each ends with what was seen on the wire."""

    def __init__(self, narrator: Narrator, stage: Stage) -> None:
        self.narrator = narrator
        self.stage = stage

    # -- what the admin does ------------------------------------------------------------------

    def cli(self, *words: str) -> Result:
        result = self.stage.daemon.cli(*words)
        self.narrator.command(["iscsi-ipsec", *words], result)
        return result

    def drop(self, folder: str, name: str, text: str) -> None:
        daemon = self.stage.daemon
        daemon.put({"psk.d": daemon.psk, "portal.d": daemon.portal}[folder] / name, text)
        self.narrator.show(f"$ cat > {folder}/{name}", text)

    def login(self, *, patience: float = 15.0) -> tuple[Result, dict[str, int]]:
        """A real login (and logout) with what it put on the wire."""
        mark = self.stage.wire.mark()
        result = self.stage.host.discover(self.stage.portal, timeout=patience)
        self.narrator.command(["iscsi-ls", "-s", f"iscsi://{self.stage.portal_name}/"], result)
        seen = {
            "clear": len(self.stage.wire.tcp(since=mark)),
            "esp": len(self.stage.wire.esp(since=mark)),
        }
        self.narrator.say(f"on the wire: {seen['clear']} unencrypted iSCSI frames, {seen['esp']} ESP frames")
        return result, seen

    # -- what must come of it -----------------------------------------------------------------

    def evidence(self) -> str:
        parts = ("daemon", self.stage.daemon.tail()), ("charon, host", self.stage.host_charon.tail())
        more = ("charon, array", self.stage.array_charon.tail())
        return "\n".join(f"--- {title}\n{text}" for title, text in (*parts, more))

    def check(self, holds: object, what: str) -> None:
        self.narrator.check(holds, what, "" if holds else self.evidence())

    def until(self, condition: object, what: str, *, timeout: float = 30.0) -> None:
        assert callable(condition)
        try:
            wait_until(condition, what, timeout=timeout)
        except NeverHappenedError as error:
            raise Disappointment(what, self.evidence()) from error
        self.check(True, what)

    def protected_login(self) -> None:
        result, seen = self.login()
        self.check(result.ok, "the login succeeded")
        self.check(not seen["clear"], "not one iSCSI frame crossed unencrypted")
        self.check(seen["esp"], f"{seen['esp']} ESP frames carried it")

    def closed_login(self) -> None:
        result, seen = self.login(patience=3.0)
        self.check(not result.ok, "the login failed, as it has to")
        self.check(not seen["clear"], "not one iSCSI frame crossed unencrypted")

    def row(self) -> dict[str, object]:
        return dict(self.stage.daemon.row(self.stage.portal_name))

    # -- the chapters -------------------------------------------------------------------------

    def before(self) -> None:
        self.narrator.chapter("A host, a storage array, and unencrypted iSCSI")
        self.narrator.say(
            f"host  {self.stage.source}   array  {self.stage.portal_name} (tgtd), each in a network namespace;",
            "every frame between them is counted outside of both.",
        )
        result, seen = self.login()
        self.check(result.ok, "the login succeeded")
        self.check(
            seen["clear"], f"{seen['clear']} frames crossed unencrypted: anyone on the wire reads along"
        )

    def array_is_ready(self) -> None:
        self.narrator.chapter("The array asks for IPsec")
        self.narrator.say("Its admin writes swanctl.conf by hand; no code of this program runs there.")
        self.narrator.show("array$ cat swanctl.conf", self.stage.configure_array(GROUP_KEY))
        self.narrator.show("array$ nft -f -", self.stage.guard_array())
        if self.stage.tunnelled:
            self.narrator.say(
                "This kernel has no ESP, so charon does it itself (kernel-libipsec, UDP port 4500):",
                "tunnel mode between inner addresses. With ESP in the kernel this runs in transport mode.",
            )
        result, _ = self.login(patience=2.0)
        self.check(not result.ok, "the host tries unencrypted and gets no answer")

    def files_dropped(self) -> None:
        self.narrator.chapter("The daemon starts on an empty folder; then files are dropped")
        settings = self.stage.settings()
        if settings:
            self.stage.daemon.put_settings(settings)
            self.narrator.show("$ cat iscsi-ipsecd.toml", settings)
        self.stage.daemon.start()
        self.check(self.stage.daemon.running, "iscsi-ipsecd said READY=1")
        self.cli("status")
        self.drop("portal.d", "array.toml", self.stage.portal_file())
        self.drop("psk.d", "group.toml", f'group = true\nkey   = "{GROUP_KEY}"\n')
        self.check(
            self.cli("wait", "--timeout", "20", self.stage.portal_name).ok,
            "key, policy and guard are in place",
        )
        self.protected_login()
        self.cli("status")
        self.check(self.row().get("protected"), "status.json calls the portal protected")
        self.check(self.cli("verify").ok, "verify found nothing unencrypted")

    def own_key(self) -> None:
        self.narrator.chapter("A key of its own beats the group's")
        self.stage.configure_array(OWN_KEY, HOST_ID)
        self.narrator.say(f"The array now takes {HOST_ID} with its own key, and the group key no more.")
        self.drop("psk.d", "db1.toml", f'id_type = "ID_FQDN"\nid      = "{HOST_ID}"\nkey     = "{OWN_KEY}"\n')
        self.until(lambda: self.row().get("key") == "db1", "status.json shows the key file db1")
        self.until(lambda: self.row().get("protected"), "and the portal protected with it")
        self.protected_login()
        self.cli("explain", self.stage.portal_name)

    def key_changed(self) -> None:
        self.narrator.chapter("Both ends change the key while data flows")
        reader = self.read_for(6)
        mark = self.stage.wire.mark()
        before = {sa["uniqueid"] for _, sa in self.stage.host_charon.sas()}
        self.stage.configure_array(NEXT_KEY, HOST_ID)
        self.drop(
            "psk.d", "db1.toml", f'id_type = "ID_FQDN"\nid      = "{HOST_ID}"\nkey     = "{NEXT_KEY}"\n'
        )
        self.until(
            lambda: (
                self.stage.host_charon.children()
                and not before & {sa["uniqueid"] for _, sa in self.stage.host_charon.sas()}
            ),
            "new SAs took the place of those that the old key made",
        )
        rc = reader.wait(30)
        self.narrator.show("$ iscsi-perf", reader.output().replace("\r", "\n").strip().splitlines()[-1])
        self.check(rc == 0, "reading went on to the end without an error")
        clear, esp = len(self.stage.wire.tcp(since=mark)), len(self.stage.wire.esp(since=mark))
        self.check(not clear, f"0 unencrypted iSCSI frames beside {esp} ESP frames")
        self.check(not self.stage.wire.dropped, "the recorder missed none")

    def read_for(self, seconds: int) -> Child:
        log = self.stage.lab.subfolder("io") / "log"
        reader = self.stage.host.read_in_background(
            self.stage.portal, self.stage.array.name, log, seconds=seconds
        )
        self.stage.lab.adopt(reader)
        mark = self.stage.wire.mark()
        self.until(lambda: len(self.stage.wire.esp(since=mark)) > 100, "iscsi-perf reads through ESP")
        return reader

    def file_broken(self) -> None:
        self.narrator.chapter("A mistake in a file")
        self.drop(
            "psk.d", "db1.toml", f'id_type = "ID_FDQN"\nid      = "{HOST_ID}"\nkey     = "{NEXT_KEY}"\n'
        )
        self.until(
            lambda: any("ID_FDQN" in said for said in self.stage.daemon.problems()), "the mistake is reported"
        )
        self.cli("status")
        self.narrator.say("The last good content stays in force:")
        self.protected_login()
        self.drop(
            "psk.d", "db1.toml", f'id_type = "ID_FQDN"\nid      = "{HOST_ID}"\nkey     = "{NEXT_KEY}"\n'
        )
        self.until(
            lambda: not any("ID_FDQN" in said for said in self.stage.daemon.problems()),
            "fixed, the problem is gone",
        )

    def charon_crashes(self) -> None:
        self.narrator.chapter("charon crashes")
        self.stage.host_charon.kill()
        self.until(lambda: not self.stage.daemon.status()["charon"]["reachable"], "status.json reports it")
        if self.stage.tunnelled:  # kernel SAs outlive charon and stay good
            self.closed_login()
        self.stage.host_charon.start()
        # with traps the SA comes with the first packet, without them the daemon brings it up itself
        wanted = "protected" if self.stage.tunnelled else "ready"
        self.until(
            lambda: self.stage.daemon.status()["charon"]["reachable"] and self.row().get(wanted),
            "started again, it got everything back",
        )
        self.protected_login()

    def files_removed(self) -> None:
        self.narrator.chapter("The files get lost: the portal stays closed")
        for path in (self.stage.daemon.psk / "db1.toml", self.stage.daemon.psk / "group.toml",
                     self.stage.daemon.portal / "array.toml"):  # fmt: skip
            path.unlink()
        self.narrator.show("$ rm psk.d/*.toml portal.d/*.toml", "")
        self.until(lambda: not self.stage.host_charon.sas(), "the SAs made with these keys are ended")
        self.stage.open_array()
        self.narrator.say("The array's own rules and SAs are gone too: it would send unencrypted data now.")
        self.closed_login()
        self.cli("status")
        self.narrator.say("Only the admin opens it:")
        self.check(self.cli("release", "--yes", self.stage.portal_name).ok, "released")
        self.until(lambda: not self.row().get("managed"), "the portal is managed no more")
        result, seen = self.login()
        self.check(result.ok and seen["clear"], "unencrypted again: it was the guard that kept it closed")


def play(narrator: Narrator) -> None:
    if available_esp() is Esp.NONE:
        raise Disappointment(
            "neither the kernel nor charon can do ESP here (no kernel-libipsec, or no /dev/net/tun)"
        )
    with Lab("host", "array") as lab:
        story = Story(narrator, set_stage(lab))
        story.before()
        story.array_is_ready()
        story.files_dropped()
        story.own_key()
        story.key_changed()
        story.file_broken()
        story.charon_crashes()
        story.files_removed()
    narrator.end("Nothing is left: namespaces, processes and files are gone.")
