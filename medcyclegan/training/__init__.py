"""Training: the objectives' mathematics, the loop that runs them, and what is kept of it."""
