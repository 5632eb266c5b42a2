"""How fast, how large, how much memory: a model in every runtime, measured in turns on one machine."""
