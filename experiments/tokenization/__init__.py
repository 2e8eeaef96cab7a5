"""Studies of tokenizers: what their merges tell, and what they cost."""
