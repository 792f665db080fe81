"""Types that every layer shares. Nothing here does I/O or knows a library."""
