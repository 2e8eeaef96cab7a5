"""The bridge to other libraries: Hugging Face checkpoints in and out, and exported programs."""
