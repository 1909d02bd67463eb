"""Generators, one file each: (B, C, *spatial) in [-1, 1] to (B, C', *spatial) in [-1, 1]."""
