"""Training: objectives, the training loop, validation, guards and checkpoints."""
