"""Paging: scattered blocks to scattered places in host memory and back, in one launch."""
