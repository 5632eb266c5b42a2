"""Image embeddings: reading tiles, computing, storing and searching."""
