"""Discriminators, one file each: (B, C, *spatial) in [-1, 1] to logits (B, 1, *patches), or a tuple of such."""
