"""Exercises of chapter 05: training."""
