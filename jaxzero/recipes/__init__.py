"""The stories that compose the rooms: an experiment, its stages, the quickstart."""
