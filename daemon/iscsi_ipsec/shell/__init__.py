"""What runs: the daemon's loop, one reconciling pass, and the command."""
