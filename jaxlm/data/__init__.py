"""Data: tasks, batches, and (numpy only, no jax) whatever else feeds a model. Import the modules by name."""
