"""Data sets on disk: where they are published, how they are fetched and read."""
