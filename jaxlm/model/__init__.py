"""The decoder language model: specification, pure forward pass, Linen shell, description."""
