"""Image and text towers, OpenCLIP checkpoints and CLIP's tokenizer."""
