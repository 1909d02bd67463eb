"""What is measured of a volume, once: every check, plan, matching and novelty rule is a function of these records."""
