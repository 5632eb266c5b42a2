"""Fine-tuning an image tower towards a text tower on images with captions or classes."""
