"""Run configurations, one file a study; each opens with its command, expected figures, hardware and wall time."""
