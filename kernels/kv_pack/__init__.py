"""Paging out and in: scattered blocks to host memory or a contiguous staging buffer and back, in one
launch."""
