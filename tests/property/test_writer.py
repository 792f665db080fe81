"""Text made of keys and policies says what they were made of, to the byte."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from hypothesis import assume, given
from hypothesis import strategies as st

from iscsi_ipsec.base.identity import IdType, IkeId, Peer
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice, PortalPolicy, Role, Start, Tuning
from iscsi_ipsec.base.portal import NamedPortal, PortalPattern, PortalRange
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.key_file import (
    CredentialRef,
    KeyDraft,
    KeyFileRef,
    PreviousDraft,
    parse_key_file,
)
from iscsi_ipsec.core.config.portal_file import parse_portal_file
from iscsi_ipsec.core.config.presets import PRESETS
from iscsi_ipsec.core.config.writer import (
    description_of,
    file_name,
    make_key_text,
    make_portal_text,
)
from tests.support.examples import examples
from tests.support.identities import HOST_ADDRESSES, named

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,10}){0,3}", fullmatch=True)
ADDRESSES = HOST_ADDRESSES
IDS = st.one_of(
    ADDRESSES.map(IkeId.address),
    named(NAMES),
    named(st.from_regex(r"[!$%&()+./:;<>\[\]^_`|~A-Za-z0-9-]{1,255}", fullmatch=True)),
    named(NAMES.map(lambda n: f"who@{n}"), IdType.ID_USER_FQDN),
)
CHOICES = st.none() | st.builds(
    IpsecChoice,
    required=st.booleans(),
    ike=st.sampled_from(IkeMode),
    esp=st.none() | st.sampled_from(EspMode),
    pfs=st.booleans(),
)


@st.composite
def patterns(draw: st.DrawFn) -> PortalPattern:
    port = draw(st.integers(1, 65535))
    if draw(st.booleans()):
        return NamedPortal(
            draw(st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,9}){0,3}", fullmatch=True)), port
        )
    address = draw(ADDRESSES)
    length = draw(st.integers(1, address.max_prefixlen))
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    assume(network.version == 4 or not network.network_address.is_link_local)  # no file may name one
    single = network.prefixlen == network.max_prefixlen
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return PortalRange(ipaddress.ip_network(address) if mapped or single else network, port)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=80)
SOURCES = st.one_of(
    st.binary(min_size=1, max_size=200).map(Secret),
    TEXTS.filter(bool).map(lambda t: Secret(t.encode())),
    st.builds(KeyFileRef, TEXTS.filter(lambda t: t and "\0" not in t)),
    st.builds(CredentialRef, NAMES),
)
MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1)).map(  # noqa: DTZ001  # gets its zone here
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
PATTERNS = st.lists(patterns(), max_size=4).map(tuple)


@examples(100)
@given(
    owner=st.none() | IDS, source=SOURCES, choice=CHOICES, portals=PATTERNS, description=st.text(max_size=40),
    previous=st.none() | st.builds(PreviousDraft, source=SOURCES, until=MOMENTS),
)  # fmt: skip
def test_a_key_files_text_parses_to_the_same_key(
    owner: IkeId | None,
    source: Secret | KeyFileRef | CredentialRef,
    choice: IpsecChoice | None,
    portals: tuple[PortalPattern, ...],
    description: str,
    previous: PreviousDraft | None,
) -> None:
    draft = KeyDraft(
        name="x", path="psk.d/x.toml", id=owner, source=source, choice=choice, portals=portals,
        previous=previous,
    )  # fmt: skip
    text = make_key_text(draft, description)
    assert parse_key_file(text, draft.path, "x") == draft
    assert description_of(text, draft.path) == description


PROPOSALS = st.none() | st.lists(st.just("aes256-sha256-modp2048"), min_size=1, max_size=2).map(tuple)
TUNING = st.builds(
    Tuning,
    ike_proposals=PROPOSALS,
    esp_proposals=PROPOSALS,
    ike_rekey_time=st.none() | st.integers(60, 90000),
    dpd_delay=st.none() | st.integers(0, 3600),
    replay_window=st.none() | st.integers(0, 4096),
    start=st.none() | st.sampled_from(Start),
)
PEERS = st.one_of(ADDRESSES.map(IkeId.address), st.just(ipaddress.ip_network("10.0.0.0/24")))


@examples(100)
@given(
    named=PATTERNS.filter(bool), role=st.sampled_from(Role), choice=CHOICES, psk=st.none() | NAMES,
    target_id=st.none() | IDS, initiators=st.lists(PEERS, max_size=3, unique=True).map(tuple),
    outer=st.none() | ADDRESSES, preset=st.none() | st.sampled_from(sorted(PRESETS)), tuning=TUNING,
)  # fmt: skip
def test_a_portal_policys_text_parses_to_the_same_policy(
    named: tuple[PortalPattern, ...], role: Role, choice: IpsecChoice | None, psk: str | None,
    target_id: IkeId | None, initiators: tuple[Peer, ...],
    outer: ipaddress.IPv4Address | ipaddress.IPv6Address | None, preset: str | None, tuning: Tuning,
) -> None:  # fmt: skip
    if choice and choice.esp is EspMode.TRANSPORT:
        outer = None  # refused by the parser: transport mode has no outer address
    policy = PortalPolicy(
        name="x", path="portal.d/x.toml", patterns=named, role=role, choice=choice,
        psk=psk.removesuffix(".toml") if psk else None, target_id=target_id,
        initiators=initiators if role is Role.TARGET else (), tunnel_outer_remote=outer,
        tunnel_outer_local=outer, preset=preset, tuning=tuning,
    )  # fmt: skip
    assert parse_portal_file(make_portal_text(policy, 'a "b" \\ \n'), policy.path, "x") == policy


@examples(100)
@given(st.lists(IDS, min_size=2, max_size=30))
def test_identities_that_differ_get_file_names_that_differ_and_are_safe(ids: list[IkeId]) -> None:
    names: dict[str, object] = {}
    for one in [*ids, None]:
        name = file_name(one)
        assert names.setdefault(name, one) == one
        assert not {"/", ":", "\0", " "} & set(name)
        assert not name.startswith(".")
        assert not name.endswith(".toml")
        assert len(f"iscsi-ipsec-{name}.toml".encode()) <= 255
