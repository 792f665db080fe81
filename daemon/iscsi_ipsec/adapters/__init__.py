"""Reaches the outside world, one foreign library or interface per module.

Law: an adapter turns foreign data into types of ``base`` and foreign
exceptions into errors of ``base.errors``; it decides nothing, and no adapter
imports another, but for ``atomic_write``, which each may use as it may use ``base``.
"""
