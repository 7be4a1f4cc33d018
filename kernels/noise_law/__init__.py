"""The law of a base plus a random change: what is read of the sum, and how far it spreads."""
