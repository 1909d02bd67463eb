"""Losses: plain tensors in, scalars out, each equal to its formula."""
