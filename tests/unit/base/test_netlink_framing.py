"""Netlink's frames: whole messages are returned, a cut one ends the parsing."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.netlink_framing import ATTRIBUTE, HEADER, attributes, error_code, messages


def message(kind: int, payload: bytes, *, flags: int = 0, sequence: int = 0) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 77) + payload


def attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value


def padded(frame: bytes) -> bytes:
    return frame + bytes(-len(frame) % 4)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.binary(max_size=9)
        )
    )
)
def test_messages_gives_each_message_as_it_was_framed(parts: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(padded(message(k, p, flags=f, sequence=s)) for k, f, s, p in parts)
    assert list(messages(data)) == parts


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=9))))
def test_attributes_gives_each_attribute_as_it_was_framed(parts: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(padded(attribute(*part)) for part in parts))) == parts


@pytest.mark.parametrize("flag", [0x8000, 0x4000, 0xC000])
def test_attributes_removes_the_flags_from_a_type(flag: int) -> None:
    """NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
    assert list(attributes(attribute(flag | 5, b"x"))) == [(5, b"x")]


def test_messages_and_attributes_need_no_padding_at_the_end() -> None:
    assert list(messages(message(1, b"abcde"))) == [(1, 0, 0, b"abcde")]
    assert list(attributes(attribute(1, b"abcde"))) == [(1, b"abcde")]


def test_messages_and_attributes_take_one_without_a_payload() -> None:
    assert list(messages(message(1, b""))) == [(1, 0, 0, b"")]
    assert list(attributes(attribute(1, b""))) == [(1, b"")]


@pytest.mark.parametrize("cut", [1, 4])
def test_messages_and_attributes_end_at_one_that_is_cut_short(cut: int) -> None:
    assert [payload for _, _, _, payload in messages((message(1, b"abcd") * 2)[:-cut])] == [b"abcd"]
    assert [value for _, value in attributes((attribute(1, b"abcd") * 2)[:-cut])] == [b"abcd"]


@given(st.binary(max_size=200))
def test_messages_and_attributes_split_any_bytes(data: bytes) -> None:
    for _, _, _, payload in messages(data):
        assert payload in data
    for _, value in attributes(data):
        assert value in data


@pytest.mark.parametrize("length", [0, 3])
def test_messages_and_attributes_end_at_a_length_of_zero(length: int) -> None:
    assert list(messages(struct.pack("=I", length) + bytes(60))) == []
    assert list(attributes(struct.pack("=H", length) + bytes(60))) == []


@pytest.mark.parametrize(
    ("said", "code"), [(0, 0), (-errno.EPERM, errno.EPERM), (-errno.ENETUNREACH, errno.ENETUNREACH)]
)
def test_error_code_is_the_errno_of_an_error(said: int, code: int) -> None:
    assert error_code(struct.pack("=i", said) + b"the request that it answers") == code
