"""Speed, size and memory of a model in every runtime, measured in turns on one machine."""
