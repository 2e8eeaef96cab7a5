"""Sequence edits: tokens that a model adds to its own input, and takes out of its output, on the contract of `base`."""

METHODS = {"landmark": "landmark:LandmarkTokens"}
