"""Exercises of chapter 06: evaluation."""
