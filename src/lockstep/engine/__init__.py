"""What a rank does: batches, the loop, metrics and checkpoints. Everything here runs in launched processes."""
