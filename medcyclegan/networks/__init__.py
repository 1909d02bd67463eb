"""Generators and discriminators: plain tensors in, plain tensors out."""
