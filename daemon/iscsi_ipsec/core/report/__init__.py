"""Prepares what people and tools are shown: status rows, proofs, metrics.

Law: reads what was decided and observed; decides nothing.
"""
