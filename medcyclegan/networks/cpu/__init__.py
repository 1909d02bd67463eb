"""Faster layers for CPUs; no other room knows of them.

`accelerate` goes through a finished network once and gives layers another class: the same layers with the same
weights, names and results up to rounding, computed in another way. Networks are built, exported and moved to GPUs
plain; whoever puts one on a processor accelerates it there.
"""

from __future__ import annotations

from medcyclegan.networks.cpu.acceleration import accelerate as accelerate
