"""Raises the two VMs, runs pytest on them and takes everything down again.

    tests/vm/run [PYTEST ARGUMENT...]

    KEEP=1            leave the VMs running; the next run takes them over
    VM_BOX=NAME       a box of vagrant's, such as debian/bookworm64, under the host's libvirtd
                      (default: a box built here, under a libvirtd in namespaces of its own)
    VM_SUITE=trixie   the Debian release in the box that is built here (default: bookworm)
    VM_ACCELERATION   kvm or tcg (default: kvm where it really runs a guest)
    VM_STATE=FOLDER   caches and VM disks (default: .vm in the checkout)
    VM_FULL=1         every combination of the matrix, every fault and change, and 100 random faults
    VM_ROUNDS=N       so many random faults instead
    VM_SEED=N         other random faults (default 1)
    VM_DEB=FILE       the package to test (default: what `make deb` puts into dist/)

Its law: nothing of the host is touched but apt's packages, the state folder and /tmp, and
only processes started here are ended, each by its own id.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.vm import box as boxes

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent

# What this suite runs, as Debian packages; none of their services is wanted on the host.
PACKAGES = (
    "vagrant",
    "vagrant-libvirt",
    "libvirt-daemon-system",
    "libvirt-clients",
    "dnsmasq-base",
    "iptables",
    "qemu-system-x86",
    "qemu-utils",
    "mmdebstrap",
    "e2fsprogs",
    "openssh-client",
    "rsync",
    "iproute2",
    "util-linux",
)

# What the Vagrantfile has libvirt name the machines and their disks after.
DISK_PREFIX = "iscsi_ipsec_"

STARTED = time.monotonic()


def main(arguments: Sequence[str]) -> int:
    """Do what the module says; return pytest's exit code."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGHUP, _exit_on_signal)
    if os.geteuid() != 0:
        raise SystemExit("vm: run as root (namespaces, bridges and a packet socket need it)")
    state = Path(os.environ.get("VM_STATE") or CHECKOUT / ".vm").resolve()
    state.mkdir(parents=True, exist_ok=True)
    (state / ".gitignore").write_text("*\n")
    with _only_one(state):
        install_tools()
        python = test_python()
        package = build_package()
        with _lab(state) as lab:
            lab.up()
            code = lab.pytest(python, arguments, package)
            say(f"pytest ended with {code}")
            return code


def say(text: str) -> None:
    """Print the current step, and how long it took to get here."""
    print(f"vm: [{time.monotonic() - STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"vm: another run uses {state}") from None
        yield


# --- what must be on the machine ------------------------------------------------------------


def install_tools() -> None:
    """Install by apt whatever is missing; a machine that has it all is left alone."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    _step("installing packages", str(CHECKOUT / "packaging/need-packages"), *PACKAGES)


def test_python() -> str:
    """Return a Python that has pytest and its plugins."""
    python = str(CHECKOUT / ".venv/bin/python")
    has_it = [python, "-c", "import pytest, pytest_timeout"]
    if not Path(python).exists() or subprocess.run(has_it, stderr=subprocess.DEVNULL).returncode:
        say("make venv")
        _step("make venv", "make", "-C", str(CHECKOUT), "venv")
    return python


def build_package() -> Path:
    """Build the Debian package of the checkout."""
    if given := os.environ.get("VM_DEB"):
        return Path(given).resolve()
    say("make deb")
    _step("make deb", "make", "-C", str(CHECKOUT), "deb")
    found = sorted((CHECKOUT / "dist").glob("iscsi-ipsec_*.deb"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise SystemExit("vm: make deb left no package in dist/")
    return found[-1]


def _step(what: str, *argv: str) -> None:
    if code := subprocess.run(argv, stdout=sys.stderr).returncode:
        raise SystemExit(f"vm: {what} failed ({code})")


def kvm_works(box: boxes.Box) -> bool:
    """Boot the kernel for a moment: a /dev/kvm that opens is not always one that runs a guest."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    guest = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults",
         "-nographic", "-no-reboot", "-kernel", str(box.kernel), "-append",
         "console=ttyS0 panic=-1", "-serial", "stdio"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    impatience = threading.Timer(15, guest.kill)
    impatience.start()
    try:
        assert guest.stdout
        return any("Linux version" in line for line in guest.stdout)
    finally:
        impatience.cancel()
        guest.kill()
        guest.wait()


# --- the lab --------------------------------------------------------------------------------


@contextmanager
def _lab(state: Path) -> Iterator[Lab]:
    keep = bool(os.environ.get("KEEP"))
    env = dict(
        os.environ,
        VAGRANT_CWD=str(HERE),
        VAGRANT_HOME=str(state / "vagrant.home"),
        VAGRANT_DOTFILE_PATH=str(state / "vagrant"),
        VAGRANT_DEFAULT_PROVIDER="libvirt",
        VAGRANT_CHECKPOINT_DISABLE="1",
        VAGRANT_NO_COLOR="1",
        LIBVIRT_DEFAULT_URI="qemu:///system",
    )
    if env.get("VM_BOX"):
        lab = Lab(state=state, env=env, prefix=())
        namespace = None
    else:
        box = boxes.ensure(state / "cache", say)
        env |= {"VM_BOX": box.name, "VM_KERNEL": str(box.kernel), "VM_INITRD": str(box.initrd)}
        env.setdefault("VM_ACCELERATION", "kvm" if kvm_works(box) else "tcg")
        say("virtualisation: " + env["VM_ACCELERATION"])
        namespace = Namespace.enter(state)
        lab = Lab(state=state, env=env, prefix=namespace.prefix, box=box)
    orderly = False
    try:
        if namespace:
            lab.wait_for_libvirt(namespace)
        yield lab
        orderly = True
    finally:
        if keep:
            say("the VMs are kept (KEEP=1); a run without KEEP takes them over and down")
        else:
            say("destroying the VMs")
            # A vagrant that was cut off still holds its lock; without it the namespace suffices.
            if orderly or not namespace:
                lab.destroy()
            if namespace:
                namespace.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """Network, mount and pid namespaces that live as long as their first process."""

    state: Path
    init: int

    @classmethod
    def enter(cls, state: Path) -> Namespace:
        """Join the namespaces that a kept run left, or make new ones."""
        if (init := cls._left_by_a_kept_run(state)) is None:
            init = cls._start(state)
        return cls(state=state, init=init)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The prefix of a command that makes it run inside."""
        init, here = f"--target={self.init}", f"--wd={CHECKOUT}"
        return ("nsenter", init, "--net", "--mount", "--pid", here, "--")

    def alive(self) -> bool:
        """Whether the first process still runs."""
        return _identity(self.init) != ""

    def end(self) -> None:
        """End the first process; the kernel ends all others in its pid namespace."""
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        (self.state / "namespace.pid").unlink(missing_ok=True)
        deadline = time.monotonic() + 20
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        for disk in (self.state / "libvirt/lib/images").glob(f"{DISK_PREFIX}*"):
            disk.unlink()

    @staticmethod
    def _left_by_a_kept_run(state: Path) -> int | None:
        try:
            pid, _, identity = (state / "namespace.pid").read_text().partition(" ")
        except FileNotFoundError:
            return None
        # A pid alone may belong to someone else by now.
        return int(pid) if _identity(int(pid)) == identity.strip() else None

    @staticmethod
    def _start(state: Path) -> int:
        shutil.rmtree(state / "vagrant", ignore_errors=True)  # its machines are gone
        log = (state / "namespace.log").open("wb")
        # unshare dies with its child and the other way round, so either is a handle to all.
        unshare = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc",
             "--kill-child=SIGKILL", str(HERE / "namespace.sh"), str(state / "libvirt")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and unshare.poll() is None:
            if children := _children(unshare.pid):
                identity = _identity(children[0])
                (state / "namespace.pid").write_text(f"{children[0]} {identity}\n")
                return children[0]
            time.sleep(0.02)
        raise SystemExit(f"vm: no namespaces: {(state / 'namespace.log').read_text()}")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command's name, or nothing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _identity(pid: int) -> str:
    """Return the start time of a live process, which distinguishes it from a later one with its pid."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (fields := _stat(pid)) and int(fields[1]) == parent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The two VMs, as vagrant sees them."""

    state: Path
    env: Mapping[str, str]
    prefix: tuple[str, ...]
    box: boxes.Box | None = None

    def up(self) -> None:
        """Boot both VMs, unless they run already."""
        if self.box:
            self._add(self.box)
        say("vagrant up")
        self._do("vagrant", "up", "--parallel")
        config = self._read("vagrant", "ssh-config")
        (self.state / "ssh_config").write_text(config)
        say("both VMs are up")

    def pytest(self, python: str, arguments: Sequence[str], package: Path) -> int:
        """Run the suite where the VMs can be reached and the wire be seen."""
        env = dict(self.env, VM_SSH_CONFIG=str(self.state / "ssh_config"), VM_DEB=str(package))
        where = [] if any(Path(arg.partition("::")[0]).exists() for arg in arguments) else [str(HERE)]
        # Emulated machines are slow; the other suites' limit per test is not for them.
        options = ["-o", "timeout=1200", "--durations=30"]
        argv = [*self.prefix, python, "-m", "pytest", *options, *where, *arguments]
        return subprocess.run(argv, env=env, cwd=CHECKOUT).returncode

    def destroy(self) -> None:
        """Remove the VMs and their disks."""
        self._do("vagrant", "destroy", "--force", check=False)

    def wait_for_libvirt(self, namespace: Namespace) -> None:
        """Return when libvirtd answers."""
        deadline = time.monotonic() + 60
        while subprocess.run(
            [*self.prefix, "virsh", "version"], env=self.env, capture_output=True
        ).returncode:
            if time.monotonic() > deadline or not namespace.alive():
                log = (self.state / "namespace.log").read_text()
                raise SystemExit(f"vm: libvirtd does not answer; see {self.state}/libvirt/log\n{log}")
            time.sleep(0.2)

    def _add(self, box: boxes.Box) -> None:
        """Let vagrant know the box, and forget those of former recipes."""
        known = [line.split()[0] for line in self._read("vagrant", "box", "list").splitlines()]
        if box.name in known:
            return
        say(f"adding the box {box.name}")
        for former in (name for name in known if name.startswith(boxes.PREFIX)):
            self._do("vagrant", "box", "remove", "--force", former, check=False)
            for image in (self.state / "libvirt/lib/images").glob(f"{former}_*"):
                image.unlink()
        self._do("vagrant", "box", "add", "--name", box.name, str(box.archive))

    def _do(self, *argv: str, check: bool = True) -> None:
        # Vagrant draws progress bars even into a file, so its talk is shown only when it matters.
        path = self.state / "vagrant.log"
        with path.open("wb") as log:
            done = subprocess.run([*self.prefix, *argv], env=self.env, stdout=log, stderr=log)
        if check and done.returncode:
            lines = path.read_text(errors="replace").replace("\r", "\n").splitlines()
            reported = [line for line in lines if "Progress:" not in line and "gems/" not in line]
            failed = f"vm: {' '.join(argv)} failed ({done.returncode}); all of it is in {path}"
            raise SystemExit("\n".join([*reported[-60:], failed]))

    def _read(self, *argv: str) -> str:
        done = subprocess.run([*self.prefix, *argv], env=self.env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"vm: {' '.join(argv)} failed ({done.returncode}): {done.stdout}")
        return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
