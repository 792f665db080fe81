"""``flags``: numbers to names and back."""

from __future__ import annotations

import json

import pytest

from tests.support import reported
from tests.support.reported import (
    FINE,
    PROBLEMS,
    Instance,
)

charon, instance, running = (
    reported.charon,
    reported.instance,
    reported.running,
)  # fixtures, found by their names here


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["0x57"], "0x57  VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED PFS_ENABLED TUNNEL_MODE_PREFERRED", "IKEv1 main, tunnel mode, PFS"),
        (["VALID", "IKE_IPSEC_ENABLED"], "0x03  VALID IKE_IPSEC_ENABLED", "IKEv2, transport (tunnel where an outer address is set) mode, no PFS"),
        (["valid,ike_ipsec_enabled"], "0x03  VALID IKE_IPSEC_ENABLED", "IKEv2, transport (tunnel where an outer address is set) mode, no PFS"),
        (["0x01"], "0x01  VALID", "IKE_IPSEC_ENABLED is unset: IPsec is not required, unencrypted traffic is allowed"),
        (["0"], "0x00  (none)", "VALID is unset: not specified, the next source decides"),
    ],
)  # fmt: skip
def test_flags_are_decoded_and_encoded(instance: Instance, words: list[str], first: str, second: str) -> None:
    answer = instance.call("flags", *words)
    assert (answer.code, answer.out.splitlines()) == (FINE, [first, second])


def test_a_shortened_flag_gets_a_suggestion(instance: Instance) -> None:
    assert 'did you mean "PFS_ENABLED"?' in instance.call("flags", "PFS").err


@pytest.mark.parametrize("flags", ["0x0F", "0x0C"], ids=["valid", "not valid"])
def test_flags_refuses_both_of_a_pair(instance: Instance, flags: str) -> None:
    answer = instance.call("flags", flags)
    assert answer.code == PROBLEMS
    assert "refused: MAIN_MODE_ENABLED and AGGRESSIVE_MODE_ENABLED" in answer.out


def test_flags_as_json(instance: Instance) -> None:
    reported = json.loads(instance.call("flags", "--json", "0x2B").out)
    assert reported["value"] == 0x2B
    assert reported["meaning"] == {
        "required": True,
        "ike": "IKEv1 aggressive",
        "mode": "transport",
        "pfs": False,
    }
    assert json.loads(instance.call("flags", "--json", "0x61").out)["problem"]
