"""Volumes in and out of files. LPS is known here and nowhere else."""
