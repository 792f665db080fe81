"""The examples at the end of each verb's ``--help``.

Law: data. A test parses every line with the command's own parser, so an
example can't fall behind a change of the options.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "status": (
        ("status", "is everything protected, and if not, why?"),
        ("status --watch", "look on while you change the target"),
        ("status --json", "for scripts: docs/status.md has every field"),
    ),
    "verify": (
        ("verify", "before you put data on the disk"),
        ("verify --json", "for a monitoring check; the exit code is enough: 0 is proven"),
    ),
    "explain": (
        ("explain 10.0.0.20", "why this key, this identity, these proposals?"),
        ("explain '[fd00::20]:3260' --json", "the same as JSON"),
    ),
    "check": (
        ("check", "all files, before you trust a change"),
        ("check /root/db1.toml", "one file, before you move it to psk.d"),
    ),
    "plan": (
        ("plan", "how does charon differ from the files? Normally not at all"),
        ("plan --with /root/group.toml /root/san.toml", "what would these files close, cut, negotiate again?"),
    ),
    "wait": (
        ("wait", "in a script, after writing files and before iscsiadm"),
        ("wait --timeout 60 10.0.0.20", "for one portal, with more patience"),
    ),
    "release": (
        ("release 10.0.0.20", "after its key and policy were removed for good"),
        ("release 10.0.0.20 --dry-run", "which sessions would be unencrypted from then on?"),
    ),
    "open-all": (
        ("open-all --dry-run", "which sessions would be unencrypted?"),
        ("open-all", "storage must be reachable now, whatever else; prints the way back"),
    ),
    "flags": (
        ("flags 0x57", "what does this number of Windows' mean?"),
        ("flags VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED", "and the other way round"),
    ),
    "psk set": (
        ("psk set --id db1.example.com --generate --wait", "a new random key; read it from the file for the target"),
        ("psk set db1.example.com --generate --wait", "another key for the same identity (a NAME instead of --id)"),
        ("psk set --id 10.0.0.5 --key-file /root/key", "the key that the storage's admin gave you"),
        ("psk set --id db1.example.com --stdin --encrypt", "kept encrypted with this machine's key or TPM"),
        ("psk set --id db1.example.com --portal 10.0.0.20 --flags 0x27", "one portal only, IKEv1 main mode"),
        ("psk set --id db1.example.com --generate --runtime", "until the next boot (Windows' Persist = FALSE)"),
    ),
    "psk undo": (
        ("psk undo", "the last change was a mistake"),
        ("psk undo db1.example.com --dry-run", "what would that touch?"),
    ),
    "psk get": (("psk get db1.example.com", "flags, file and portals; never the key"),),
    "psk list": (("psk list", "all keys, with where each lies"),),
    "psk remove": (
        ("psk remove db1.example.com --dry-run", "what would end with it?"),
        ("psk remove db1.example.com --wait", "by identity"),
        ("psk remove --name db1", "by file"),
    ),
    "group-psk set": (("group-psk set --key-file /root/key --wait", "the key that all initiators of a target share"),),
    "group-psk remove": (("group-psk remove --wait", "when each initiator has a key of its own"),),
    "tunnel-address set": (
        ("tunnel-address set 192.0.2.20 203.0.113.1", "the portal is behind the gateway 203.0.113.1"),
        ("tunnel-address set 192.0.2.20 203.0.113.1 --local 198.51.100.7", "from this host's address"),
    ),
    "tunnel-address remove": (("tunnel-address remove 192.0.2.20", "reach it directly again"),),
    "clear-cache": (("clear-cache", "as systemctl reload iscsi-ipsecd, but returns when it is done"),),
    "import": (
        ("import settings.cmd", "shows what would be written for a script of iscsicli commands"),
        ("import --apply keys.json settings.reg", "writes it, from ConvertTo-Json and a registry export"),
        ("import --default-bitmap 0x27", "what DefaultSecurityBitmap says as a setting"),
    ),
}  # fmt: skip


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def add_examples(name: str, parser: argparse.ArgumentParser) -> None:
    """End the help of a verb, and of each of its actions, with its examples."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way to walk a parser
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # as above
            for word, below in action.choices.items():
                add_examples(f"{name} {word}", below)
    if name in EXAMPLES:
        lines = [f"  # {why}\n  iscsi-ipsec {command}" for command, why in EXAMPLES[name]]
        parser.epilog = "\n".join(["examples:", *lines])
        parser.formatter_class = _Formatter
