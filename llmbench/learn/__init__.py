"""Learning by doing: worked examples, exercises and decisions, and experiments with small models."""
