"""Exercises of chapter 03: the bottleneck."""
