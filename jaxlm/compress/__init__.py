"""Text to bits under a language model and back: arithmetic coding, exact and fast, and its windows read as tokens."""
