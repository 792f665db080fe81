"""Reads the settings of Windows' iSCSI initiator and of iSNS as keys and policies."""
