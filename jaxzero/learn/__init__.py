"""Learning: batches, losses, and pure train steps."""
