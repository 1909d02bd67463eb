"""The survey of a volume, measured once: every check, plan, matching and novelty rule is a function of it."""
