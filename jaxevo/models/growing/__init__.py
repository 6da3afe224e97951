"""Networks whose nodes come and go."""
