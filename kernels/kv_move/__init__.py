"""Copies of blocks within the device: compaction, copy-on-write, prefix sharing."""
