"""The engine: takes what a family saw and a strategy chose, and applies it to every tensor with a token axis."""
