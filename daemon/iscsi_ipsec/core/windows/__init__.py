"""What Windows' iSCSI initiator and iSNS export, as key files and policies of ours."""
