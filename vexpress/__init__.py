"""V-Express: audio-driven portrait video."""
