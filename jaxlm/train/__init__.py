"""Training: schedules, optimizer, LoRA, the step and the loop, checkpoints, metrics; one idea a file."""
