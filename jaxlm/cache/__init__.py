"""Key/value cache policies: what is kept of the past, and how it is read back."""

METHODS = {"full": "full:Full", "landmark": "landmark:Landmark", "window_sink": "window_sink:WindowSink"}
