"""Labels from text: prompts, classification, batch labelling and its outputs."""
