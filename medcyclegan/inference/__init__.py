"""From a loaded generator and a volume to a volume."""
