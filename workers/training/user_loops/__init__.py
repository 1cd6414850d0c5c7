"""Training loops of the operator's own: each trial in a process of its own."""
