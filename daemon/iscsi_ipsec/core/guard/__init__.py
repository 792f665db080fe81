"""The guard as nftables text."""
