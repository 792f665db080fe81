"""Shows how libstrongswan parses identities' texts: ``python -m tests.support.strongswan_ids`` < JSON > JSON.

charon lists an identity's text, not its type. So the library's parser is called, in a separate process, since
the library changes printf(3) for the whole process.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path("/usr/lib/ipsec/libstrongswan.so.0")


@dataclass(frozen=True)
class Parsed:
    """An identity as strongSwan has it: RFC 2407's number of the type, and the payload's bytes."""

    type: int
    data: bytes
    wildcards: bool


def parse(texts: Sequence[str]) -> list[Parsed]:
    """Each text as charon parses it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.strongswan_ids"],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Parsed(type, bytes.fromhex(data), wildcards) for type, data, wildcards in json.loads(done.stdout)]


class _Chunk(ctypes.Structure):
    _fields_ = (("ptr", ctypes.POINTER(ctypes.c_ubyte)), ("len", ctypes.c_size_t))


class _Identification(ctypes.Structure):
    """The beginning of ``identification_t`` (identification.h, the same in 5.9 and 6.0)."""

    _fields_ = (
        ("get_encoding", ctypes.CFUNCTYPE(_Chunk, ctypes.c_void_p)),
        ("get_type", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)),
        ("hash", ctypes.c_void_p),
        ("equals", ctypes.c_void_p),
        ("matches", ctypes.c_void_p),
        ("contains_wildcards", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)),
    )


def main() -> None:
    """Parse the list on standard input."""
    library = ctypes.CDLL(str(LIBRARY))
    library.library_init(None, b"identities")
    create = library.identification_create_from_string
    create.restype = ctypes.c_void_p
    found = []
    for text in json.load(sys.stdin):
        this = create(text.encode())
        methods = ctypes.cast(this, ctypes.POINTER(_Identification)).contents
        chunk = methods.get_encoding(this)
        data = ctypes.string_at(chunk.ptr, chunk.len) if chunk.len else b""
        found.append((methods.get_type(this), data.hex(), methods.contains_wildcards(this)))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
