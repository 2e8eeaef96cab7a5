"""Measuring models on other people's tasks: likelihoods and completions of text, and the lm-evaluation-harness."""
