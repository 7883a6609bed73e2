"""Experiments that train small models and compare them. Each experiment has one file."""
