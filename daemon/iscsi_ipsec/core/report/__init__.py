"""Prepares status rows, proofs and metrics for people and tools.

Law: reads decisions and observations; decides nothing.
"""
