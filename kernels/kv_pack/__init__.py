"""Paging out and in: scattered blocks to a contiguous staging buffer and back, in one launch."""
