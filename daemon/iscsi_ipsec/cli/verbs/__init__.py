"""The verbs of ``iscsi-ipsec``, one module each.

Each has ``add(subparsers)``, which describes its options, and ``run(options,
paths)``, which returns an :class:`~iscsi_ipsec.cli.daemon_client.Exit`.
"""
