"""From files to patches: which cases there are, what is wrong with them, the prepared cache, and drawing from it."""
