"""The zero-shot review app: classes and prompts, tiles to label, outputs."""
