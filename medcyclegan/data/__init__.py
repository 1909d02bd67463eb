"""From files to patches: preparation, the prepared cache, and drawing patches from it."""
