"""A key that only this machine's TPM can decrypt, read by the daemon in the sandbox of its unit.

The TPM is swtpm's behind the kernel's own proxy (tpm_vtpm_proxy): systemd-creds and the unit's
rules for devices meet it as they meet a chip.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import farend, openiscsi
from tests.vm.combination import CONFIG
from tests.vm.conftest import forget_files
from tests.vm.farend import Peer
from tests.vm.full import only_full
from tests.vm.machine import Machine
from tests.vm.test_first_session import assert_only_esp, policy, portal_status, status
from tests.vm.wire import Wire

KEY = "bound to a TPM, not a secret: 76543210fedcba98"
NAME = "iscsi-ipsec-tpm"
STORE = "/etc/credstore.encrypted"
KEY_FILE = f'group = true\nkey_credential = "{NAME}"\n'

START_TPM = (
    "modprobe tpm_vtpm_proxy && mkdir -p -m 700 /root/{state} && systemd-run --quiet --unit=swtpm --service-type=exec"
    " swtpm chardev --vtpm-proxy --tpm2 --tpmstate dir=/root/{state} --flags not-need-init,startup-clear"
)
STOP_TPM = "systemctl stop swtpm"


def start_tpm(machine: Machine, state: str) -> None:
    """Give the machine a TPM whose seeds lie in a folder of this name."""
    machine.run(START_TPM.format(state=state), check=True)
    machine.wait("test -c /dev/tpmrm0")


@pytest.fixture
def sealed(ready: Machine, target: Machine) -> Iterator[Machine]:
    """The initiator with a TPM and a key that is encrypted by it, and a far end that has the key too."""
    far = Peer(name="far", local=target.ip, remote=ready.ip, key=KEY)
    farend.configure_charon(target, farend.swanctl_conf(far))
    start_tpm(ready, "tpm")
    ready.run(
        f"mkdir -p -m 700 {STORE} && systemd-creds encrypt --with-key=tpm2 --name={NAME} - {STORE}/{NAME}",
        check=True,
        stdin=KEY.encode(),
    )
    yield ready
    ready.run(f"{STOP_TPM}; rm -r /root/tpm* {STORE}/{NAME}")
    forget_files(ready)
    farend.configure_charon(target, "")


def restart_daemon(machine: Machine) -> None:
    """As a boot would: the unit's rules for devices are made from those that there are."""
    machine.run("systemctl restart iscsi-ipsecd", timeout=90, check=True)


@only_full
def test_a_key_encrypted_by_the_tpm_protects_a_session_and_is_of_no_use_with_another(
    sealed: Machine, target: Machine, wire: Wire
) -> None:
    mark = wire.mark()
    sealed.write(f"{CONFIG}/psk.d/group.toml", KEY_FILE, 0o600)
    sealed.write(f"{CONFIG}/portal.d/san.toml", policy(target.ip))
    restart_daemon(sealed)
    sealed.run("iscsi-ipsec wait --timeout 150", timeout=90, check=True)
    openiscsi.discover(sealed, target.ip)
    device = openiscsi.login(sealed, target.ip)
    openiscsi.write_and_read_back(sealed, device)

    assert_only_esp(wire, mark, sealed.ip, target.ip)
    assert sealed.run(f"grep -rlF '{KEY}' /etc /var/lib/iscsi-ipsec /run/iscsi-ipsec").out == ""

    openiscsi.forget_everything(sealed)
    sealed.run(STOP_TPM, check=True)
    start_tpm(sealed, "tpm-of-another-machine")
    restart_daemon(sealed)
    codes = {problem["code"] for problem in status(sealed)["problems"]}
    row = portal_status(sealed, f"{target.ip}:3260")

    assert "bad-credential" in codes
    assert (row["protected"], row["ready"]) == (False, False)
    assert sealed.run(f"iscsiadm -m discovery -t st -p {target.ip}", timeout=15).rc
    assert not wire.tcp(3260, mark), wire.summary(mark)
