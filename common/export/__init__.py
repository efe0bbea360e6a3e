"""What a run has trained, for servers: merged weights, GGUF, adapters, and the proof that they are what was trained."""
