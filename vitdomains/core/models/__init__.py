"""The Vision Transformer, backbones by name, and the weights that go into them."""
