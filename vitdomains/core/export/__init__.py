"""From a bundle to files that other programs run, each checked against the model that it came from."""
