"""Causal attention of chunks of new tokens over their own tokens and the paged prefix."""
