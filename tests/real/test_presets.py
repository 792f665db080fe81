"""Each preset against a responder that accepts only what its product accepts.

The responder here does not do ESP (this kernel may have none), but it chooses the ESP proposal
before it installs anything, and says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.support.admin import CONNECTION, PORTAL, wait_for_connection
from tests.support.ike import KEY_A
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair

INITIATOR = "10.10.0.1"


@dataclass(frozen=True)
class Product:
    """The product's proposals, narrowed to one suite, and the line of its log for it."""

    version: str
    ike: str
    esp: str
    chosen_ike: str
    chosen_esp: str
    mode: str = "transport"


PRODUCTS = {
    "rfc7146-gcm": Product(
        "2", "aes128gcm16-prfsha256-ecp256", "aes128gcm16-ecp256", "AES_GCM_16_128/PRF_HMAC_SHA2_256/ECP_256",
        "AES_GCM_16_128",
    ),
    "rfc7146-cbc": Product(
        "2", "aes128-sha256-modp2048", "aes128-sha256-modp2048", "AES_CBC_128/HMAC_SHA2_256_128", "AES_CBC_128/HMAC_SHA2_256_128",
    ),
    "rfc3723": Product(
        "1", "aes128-sha1-modp2048", "aes128-sha1-modp2048", "AES_CBC_128/HMAC_SHA1_96", "AES_CBC_128/HMAC_SHA1_96", "tunnel",
    ),
    # the configuration that LabNetApp runs against ONTAP: Suite B's IKE, and no group in rekeys
    "ontap-labnetapp": Product(
        "2", "aes256-sha384-ecp384", "aes256gcm16", "AES_CBC_256/HMAC_SHA2_384_192", "AES_GCM_16_256",
    ),
    "ontap-suiteb": Product(
        "2", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384", "AES_GCM_16_256/PRF_HMAC_SHA2_384/ECP_384", "AES_GCM_16_256",
    ),
    "ontap-cbc": Product(
        "2", "aes256-sha512-prfsha512-ecp384", "aes256-sha512-ecp384", "AES_CBC_256/HMAC_SHA2_512_256", "AES_CBC_256/HMAC_SHA2_512_256",
    ),
    "windows": Product(
        "1", "aes128-sha1-modp2048", "aes128-sha1", "AES_CBC_128/HMAC_SHA1_96", "AES_CBC_128/HMAC_SHA1_96",
    ),
    "equallogic": Product(
        "1", "aes256-sha256-modp2048", "aes256-sha256", "AES_CBC_256/HMAC_SHA2_256_128", "AES_CBC_256/HMAC_SHA2_256_128",
    ),
    "mds": Product(
        "1", "aes128-sha1-modp1536", "aes128-sha1", "AES_CBC_128/HMAC_SHA1_96", "AES_CBC_128/HMAC_SHA1_96", "tunnel",
    ),
}  # fmt: skip


def respond(pair: Pair, product: Product, *, aggressive: bool = False) -> None:
    """Configure the far end by hand."""
    pair.target.load_psk("held", KEY_A, [INITIATOR])
    pair.target.load_conn(
        "product",
        {
            "version": product.version,
            "aggressive": "yes" if aggressive else "no",
            "local_addrs": [PORTAL],
            "remote_addrs": [INITIATOR],
            # strict: nothing but this suite
            "proposals": [product.ike],
            "local": {"auth": "psk", "id": PORTAL},
            "remote": {"auth": "psk", "id": INITIATOR},
            "children": {
                "iscsi": {
                    "mode": product.mode,
                    "local_ts": ["dynamic[6/3260]"],
                    "remote_ts": ["dynamic[6]"],
                    "esp_proposals": [product.esp],
                }
            },
        },
    )


def negotiate(pair: Pair, daemon: Daemon, policy: str) -> str:
    """Have the daemon load the policy, start its child, and return what the responder logged of it."""
    daemon.put_key("group", f'group = true\nkey = "{KEY_A.decode()}"\n')
    daemon.put_portal("san", f'portals = ["{PORTAL}"]\n{policy}\n')
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    (row,) = daemon.status()["portals"]
    mark = pair.target.log_mark()
    pair.initiator.start_initiate(ike=CONNECTION, child=row["child"])
    verdicts = (
        "selected proposal: ESP",
        "no proposal found",
        "no matching",
        "no acceptable proposal",
        "NO_PROPOSAL_CHOSEN",
    )
    wait_until(
        lambda: any(sign in pair.target.log_text(mark) for sign in verdicts),
        "the responder decides",
        detail=pair.target.tail,
    )
    return pair.target.log_text(mark)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_preset_finds_the_suite_of_its_product(pair: Pair, daemon: Daemon, name: str) -> None:
    product = PRODUCTS[name]
    respond(pair, product)
    log = negotiate(pair, daemon, f'preset = "{name.partition("-")[0]}"')
    assert f"selected proposal: IKE:{product.chosen_ike}" in log
    assert f"selected proposal: ESP:{product.chosen_esp}" in log


@pytest.mark.parametrize("group", ["", "-ecp384"], ids=["without a group", "with a group"])
def test_the_ontap_preset_finds_a_suite_in_rekeys_whether_or_not_the_product_has_a_group_there(
    pair: Pair, daemon: Daemon, group: str
) -> None:
    """The first CHILD SA has no exchange of its own, so only one that is negotiated later shows it."""
    product = PRODUCTS["ontap-labnetapp"]
    respond(pair, replace(product, esp=product.esp + group))
    daemon.put_key("group", f'group = true\nkey = "{KEY_A.decode()}"\n')
    daemon.put_portal("san", f'portals = ["{PORTAL}"]\npreset = "ontap"\n')
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    assert pair.initiator.initiate(ike=CONNECTION)
    (row,) = daemon.status()["portals"]
    mark = pair.target.log_mark()
    pair.initiator.start_initiate(ike=CONNECTION, child=row["child"])
    wait_until(
        lambda: (
            "selected proposal: ESP" in pair.target.log_text(mark)
            or "NO_PROPOSAL" in pair.target.log_text(mark)
        ),
        "the responder decides",
        detail=pair.target.tail,
    )
    chosen = "ESP:AES_GCM_16_256/ECP_384" if group else "ESP:AES_GCM_16_256/NO_EXT_SEQ"
    assert chosen in pair.target.log_text(mark)


def test_the_control_a_preset_finds_nothing_at_another_products_responder(pair: Pair, daemon: Daemon) -> None:
    respond(pair, PRODUCTS["mds"])
    assert "selected proposal: ESP" not in negotiate(pair, daemon, 'preset = "windows"')


V1_RESPONDERS = {
    "strongest": Product(
        "1", "aes256-sha256-modp2048", "aes256gcm16-modp2048", "AES_CBC_256/HMAC_SHA2_256_128", "AES_GCM_16_256",
    ),
    "rfc7146": Product(
        "1", "aes128-sha256-modp2048", "aes128-sha256-modp2048",
        "AES_CBC_128/HMAC_SHA2_256_128", "AES_CBC_128/HMAC_SHA2_256_128",
    ),
    "suiteb": Product(
        "1", "aes256-sha384-modp2048", "aes128gcm16-modp2048", "AES_CBC_256/HMAC_SHA2_384_192", "AES_GCM_16_128",
    ),
}  # fmt: skip


@pytest.mark.parametrize("responder", V1_RESPONDERS)
@pytest.mark.parametrize("mode", ["MAIN_MODE_ENABLED", "AGGRESSIVE_MODE_ENABLED"])
def test_the_defaults_of_ikev1_find_a_responder_that_has_only_one_of_their_suites(
    pair: Pair, daemon: Daemon, mode: str, responder: str
) -> None:
    product = V1_RESPONDERS[responder]
    respond(pair, product, aggressive=mode.startswith("AGG"))
    flags = f'["VALID", "IKE_IPSEC_ENABLED", "{mode}", "TRANSPORT_MODE_PREFERRED", "PFS_ENABLED"]'
    log = negotiate(pair, daemon, f"security_flags = {flags}")
    assert f"selected proposal: IKE:{product.chosen_ike}" in log
    assert f"selected proposal: ESP:{product.chosen_esp}" in log
