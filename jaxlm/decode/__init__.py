"""Decoding: turning a model's distributions into text. One method a file."""
