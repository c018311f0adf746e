"""From raw videos to a training data set."""
