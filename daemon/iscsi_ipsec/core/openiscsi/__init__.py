"""open-iscsi's records, from their text."""
