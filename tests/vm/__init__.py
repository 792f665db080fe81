"""The VM suite: a real initiator, a real target, and the wire between them seen from outside."""
