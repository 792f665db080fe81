"""What people and tools are shown: rows of the status document, proofs, metrics as text.

Law: reads what was decided and observed; decides nothing.
"""
