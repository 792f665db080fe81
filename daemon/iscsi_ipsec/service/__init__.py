"""The daemon: one loop that observes, decides, acts and reports, and the threads that wake it."""
