"""Attention back ends. All share one signature (see `reference.attention`)."""
