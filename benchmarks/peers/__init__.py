"""The same meta-gradient in every library that has one, each in its own environment (`make bench-peers`)."""
