"""Attention of one new token per sequence over its KV blocks."""
