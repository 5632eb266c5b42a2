"""The Vision Transformer core that every domain shares."""
