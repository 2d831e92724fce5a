"""One trial, one process: the loop, optimizers, checkpoints, seeds. Plain torch; runs without Ray."""
