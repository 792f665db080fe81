"""Reads the admin's files without trusting the file system.

Law: nothing here parses what a file says. A file is opened only when every
folder above it can be changed by root (or our own user) alone, without
following a link and without blocking, and what was opened is then checked
again by its descriptor. ``stats`` detects changes, ``search`` lists files, ``trust`` checks who could have
changed them, ``reading`` reads. Writing is
:mod:`~iscsi_ipsec.adapters.atomic_write`.
"""

from iscsi_ipsec.adapters.files.reading import decode_config, read_config, read_key_file
from iscsi_ipsec.adapters.files.search import (
    SUFFIX,
    ConfigSearch,
    Found,
    FoundFile,
    find_config,
    has_config,
)
from iscsi_ipsec.adapters.files.stats import FileStat, device_of, stat_config
from iscsi_ipsec.adapters.files.trust import check_folder

__all__ = [
    "SUFFIX",
    "ConfigSearch",
    "FileStat",
    "Found",
    "FoundFile",
    "check_folder",
    "decode_config",
    "device_of",
    "find_config",
    "has_config",
    "read_config",
    "read_key_file",
    "stat_config",
]
