"""`vtc bench serving`: what pruning does to KV blocks and requests per second of vLLM, engines side by side."""
