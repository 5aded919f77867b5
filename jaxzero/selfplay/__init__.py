"""Self-play: playing episodes, their record, and the store they are learned from."""
