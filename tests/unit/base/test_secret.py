"""A Secret has one way out."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
import pprint
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ipsec.base.secret import Secret
from tests.support.values import per_id

CANARY = b"canary-key-0123456789"


@given(st.binary(min_size=1))
def test_secret_shows_neither_bytes_nor_length_in_any_format(data: bytes) -> None:
    secret = Secret(data)
    forms = {repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{secret:>5}", "{}".format(secret)}  # noqa: UP032  # one of the ways
    assert forms == {"<secret>"}
    assert secret.reveal() == data


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_secret_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Secret(CANARY), protocol)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(per_id("db1", secret=CANARY), protocol)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_secret_cannot_be_copied(copier: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="copied"):
        copier(Secret(CANARY))


def test_secret_gets_into_no_json() -> None:
    with pytest.raises(TypeError):
        json.dumps({"key": Secret(CANARY)})


def test_secret_has_no_dict_and_takes_no_attribute() -> None:
    with pytest.raises(TypeError):
        vars(Secret(CANARY))
    with pytest.raises(AttributeError):
        Secret(CANARY).more = 1  # type: ignore[attr-defined]  # what must fail


def test_secret_of_a_key_is_not_in_the_key_as_dictionary() -> None:
    with pytest.raises(TypeError):
        dataclasses.asdict(per_id("db1", secret=CANARY))


def test_secret_of_a_key_is_neither_printed_nor_logged() -> None:
    key = per_id("db1", secret=CANARY)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("test")  # noqa: LOG001  # one that nothing else knows
    logger.addHandler(handler)
    logger.error("%s %r %s", key.secret, key, {"key": key})
    shown = stream.getvalue() + pprint.pformat(key)
    assert "canary" not in shown
    assert "<secret>" in shown


@pytest.mark.parametrize("data", ["text", bytearray(b"x"), None, 5])
def test_secret_is_made_of_bytes_only(data: object) -> None:
    with pytest.raises(TypeError) as caught:
        Secret(data)  # type: ignore[arg-type]  # what must fail
    assert repr(data) not in str(caught.value)


@given(st.binary(), st.binary())
def test_secret_compares_by_its_bytes(one: bytes, two: bytes) -> None:
    assert (Secret(one) == Secret(two)) is (one == two)
    assert Secret(one) != one
    if one == two:
        assert hash(Secret(one)) == hash(Secret(two))


@given(st.binary(), st.lists(st.binary(), max_size=3), st.binary(min_size=1))
def test_keyed_digest_depends_on_key_context_and_bytes(data: bytes, context: list[bytes], key: bytes) -> None:
    digest = Secret(data).keyed_digest(key, *context)
    assert len(digest) == 16
    assert digest == Secret(data).keyed_digest(key, *context)
    assert digest != Secret(data + b"x").keyed_digest(key, *context)
    assert digest != Secret(data).keyed_digest(key, *context, b"")
    assert digest != Secret(data).keyed_digest(key + b"x", *context)
