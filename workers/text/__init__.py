"""Documents read and cut into token sequences."""
